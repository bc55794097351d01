"""Codes a network's tensors with nncodec, the MPEG neural-network coding reference software.

Run by other benchmarks with the Python of an environment that has nncodec:

    python nncodec_sizes.py TENSORS.npz OUT.npz QP [QP ...]

OUT holds for each QP the size of the bit stream, "bytes:QP", and the tensors that it gives back,
"QP:NAME". Dependent quantisation and its optimised parameters are on, as is its default.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import tempfile
from typing import Any
from unittest.mock import MagicMock

import numpy as np

# Its data sets and model zoos need these at import; coding tensors doesn't.
STAND_INS = (
    "torchvision",
    "timm",
    "wandb",
    "flwr",
    "tensorflow",
    "sentencepiece",
    "transformers",
    "datasets",
    "cv2",
)


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that nobody calls."""

    def find_spec(self, name: str, *_: Any) -> Any:
        """Claim the stand-ins."""
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """Make a module that has every name."""
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        """Do nothing."""


def main() -> None:
    sys.meta_path.insert(0, StandIn())
    from nncodec import nn

    with np.load(sys.argv[1], allow_pickle=False) as stored:
        tensors = {name: stored[name].astype(np.float32) for name in stored.files}
    out: dict[str, Any] = {}
    for qp in map(int, sys.argv[3:]):
        with tempfile.TemporaryDirectory() as folder:
            stream = nn.encode(tensors, {"qp": qp, "results": folder, "verbose": False})
            out[f"bytes:{qp}"] = np.array(len(stream))
            for name, value in nn.decode(stream).items():
                out[f"{qp}:{name}"] = np.asarray(value, dtype=np.float32)
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()

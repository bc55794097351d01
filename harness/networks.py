"""Reference architectures without training: what they count, and files to measure them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.datasets.architectures import Cost, cost, network_names, require_network, usual
from flatsat.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.datasets.architectures import Shape


@dataclass(frozen=True)
class Architecture:
    """One reference architecture for images of one kind.

    Attributes:
        name: as `flatsat networks export` takes it.
        input_shape: (c, h, w) of one image.
        classes: outputs.
        cost: parameters, weights and MACs; None where the network takes no such image.
        why: it takes none, or "".
    """

    name: str
    input_shape: Shape
    classes: int
    cost: Cost | None
    why: str = ""


@dataclass(frozen=True)
class Exported:
    """An architecture as a file.

    Attributes:
        architecture: what it is of.
        path: of the ONNX file.
        sha256: of it.
        size_bytes: of it.
    """

    architecture: Architecture
    path: Path
    sha256: str
    size_bytes: int


def architectures(
    input_shape: Shape | None = None, classes: int | None = None, width: float = 1.0
) -> list[Architecture]:
    """Return every reference architecture.

    Args:
        input_shape: of one image; None: each network's usual one.
        classes: likewise.
        width: multiplies hidden channels and units.

    Raises:
        UsageError: the width is not positive.
    """
    return [_sized(name, input_shape, classes, width) for name in network_names()]


def export_network(
    name: str,
    target: Path,
    *,
    input_shape: Shape | None = None,
    classes: int | None = None,
    width: float = 1.0,
    seed: int = 0,
    opset: int = 17,
    force: bool = False,
) -> Exported:
    """Write an architecture with untrained weights as ONNX; the file appears whole or not at all.

    Args:
        name: of the architecture.
        target: where to.
        input_shape: of one image; None: the usual one.
        classes: outputs; None: as many as usual.
        width: multiplies hidden channels and units.
        seed: of the weights.
        opset: ONNX operator set.
        force: replace a file that is there.

    Raises:
        UsageError: no such network, one that takes no such image, or `target` is there already or
            can't be written.
        InfrastructureError: the disk is full.
    """
    require_network(name)
    sized = _sized(name, input_shape, classes, width)
    if sized.cost is None:
        raise UsageError(f"{name}: {sized.why}")
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="name a file with --output")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="use --force, or another --output")

    from flatsat.canonical import sha256_bytes
    from flatsat.compressors.candidate import FULL
    from flatsat.files import replace_file

    data = _onnx(sized, width, seed, opset)
    try:
        replace_file(target, lambda part: part.write_bytes(data))
    except OSError as error:
        text = f"can't write {target}: {error.strerror or error}"
        if error.errno in FULL:
            raise InfrastructureError(text, hint="free some space and run again") from error
        raise UsageError(text, hint="name another file with --output") from error
    return Exported(sized, target, sha256_bytes(data), len(data))


def _sized(name: str, shape: Shape | None, classes: int | None, width: float) -> Architecture:
    task = usual(name)
    shape = task.input_shape if shape is None else shape
    classes = task.classes if classes is None else classes
    try:
        found = cost(name, classes=classes, input_shape=shape, width=width)
    except UsageError as error:
        if not width > 0:
            raise
        return Architecture(name, shape, classes, None, str(error))
    return Architecture(name, shape, classes, found)


def _onnx(sized: Architecture, width: float, seed: int, opset: int) -> bytes:
    import torch

    from flatsat.compressors.base import Network
    from flatsat.compressors.onnx_lower import export
    from flatsat.datasets.nets import build
    from flatsat.seeds import integer_seed
    from flatsat.tensors import TensorSpec

    shape = sized.input_shape
    weights = torch.Generator().manual_seed(integer_seed(seed, "compressors/untrained"))
    module = build(
        sized.name, classes=sized.classes, input_shape=shape, width=width, generator=weights
    )
    logits: tuple[int | str, ...] = ("batch", sized.classes)
    if sized.name == "unet":  # Logits of each pixel.
        logits += shape[1:]
    return export(
        Network(module, shape),
        TensorSpec("image", "float32", ("batch", *shape)),
        TensorSpec("logits", "float32", logits),
        opset,
    )

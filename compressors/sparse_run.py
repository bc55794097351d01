"""A sparse program executed by PyTorch with dense weights: what the runtime is held to.

It shares nothing with `sparse.c` but the file, so that each checks the other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flatsat.compressors.sparse_program import Op, Program, sides

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_BATCH = 64


@torch.no_grad()
def run(program: Program, images: Array) -> Array:
    """Return the outputs (n, ...) for inputs (n, ...), float32.

    Args:
        program: to execute.
        images: as many as there are, of the program's input shape.
    """
    parts = [
        _run(program, torch.from_numpy(np.array(images[start : start + _BATCH], np.float32)))
        for start in range(0, len(images), _BATCH)
    ]
    return np.asarray(torch.cat(parts).numpy())


def _run(program: Program, images: Tensor) -> Tensor:
    values = {program.source: images.reshape(len(images), *sides(program.shapes[program.source]))}
    for op in program.ops:
        places = sides(program.shapes[op.output])
        made = _execute(op, [values[i] for i in op.inputs], places)
        values[op.output] = made.clamp(op.low, op.high)
    return values[program.target].reshape(len(images), *program.shapes[program.target])


def _execute(op: Op, taken: list[Tensor], places: tuple[int, int, int]) -> Tensor:
    """Return (n, channels, height, width)."""
    x = taken[0]
    if op.kind == "add":
        return x + taken[1]
    if op.kind == "concat":
        return torch.cat(taken, 1)
    if op.kind == "copy":
        return x.reshape(len(x), *places)
    if op.kind == "stretch":
        return _stretch(op, x, places)
    if op.kind in ("maxpool", "avgpool"):
        return _pool(op, x, places)
    assert op.weights is not None
    matrix = torch.from_numpy(np.array(op.weights.matrix))
    bias = None if op.bias is None else torch.from_numpy(np.array(op.bias))
    if op.kind == "fc":
        return F.linear(x.reshape(len(x), -1), matrix, bias).reshape(len(x), -1, 1, 1)
    weight = matrix.reshape(len(matrix), x.shape[1] // op.groups, *op.kernel)
    x = F.pad(x, (op.before[1], op.behind[1], op.before[0], op.behind[0]))
    return F.conv2d(x, weight, bias, op.stride, dilation=op.dilation, groups=op.groups)


def _stretch(op: Op, x: Tensor, places: tuple[int, int, int]) -> Tensor:
    if op.repeat:
        return x.repeat_interleave(op.stride[0], 2).repeat_interleave(op.stride[1], 3)
    made = x.new_zeros(len(x), *places)
    made[:, :, :: op.stride[0], :: op.stride[1]] = x
    return made


def _pool(op: Op, x: Tensor, places: tuple[int, int, int]) -> Tensor:
    # Far enough behind that every window is whole.
    behind = [
        max(0, (places[i + 1] - 1) * op.stride[i] + op.kernel[i] - op.before[i] - x.shape[i + 2])
        for i in (0, 1)
    ]
    pads = (op.before[1], behind[1], op.before[0], behind[0])
    if op.kind == "maxpool":
        return _cut(F.max_pool2d(F.pad(x, pads, value=-torch.inf), op.kernel, op.stride), places)
    sums = F.avg_pool2d(F.pad(x, pads), op.kernel, op.stride, divisor_override=1)
    counted = torch.ones(1, 1, *x.shape[2:])
    if op.count_pad:
        told = (op.before[1], min(op.behind[1], behind[1]), op.before[0])
        counted = F.pad(counted, (*told, min(op.behind[0], behind[0])), value=1.0)
        counted = F.pad(counted, (0, behind[1] - told[1], 0, 0))
        counted = F.pad(counted, (0, 0, 0, pads[3] - min(op.behind[0], behind[0])))
    else:
        counted = F.pad(counted, pads)
    divisor = F.avg_pool2d(counted, op.kernel, op.stride, divisor_override=1)
    return _cut(sums / divisor, places)


def _cut(x: Tensor, places: tuple[int, int, int]) -> Tensor:
    return x[:, :, : places[1], : places[2]]

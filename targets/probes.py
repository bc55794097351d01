"""Small models that ask a board for its peak rates: the artifact of a capability job."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SIDE = 256
"""Of the square matrices that are multiplied: large enough to hide what a call costs, small enough
for the second-level cache of any board."""

MANIFEST = "probes.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_OPSET = 17
_IR = 8


def probe_zip() -> bytes:
    """Return the probe models as a zip archive, the same bytes each time.

    Each multiplies an input of n x 256 by a constant 256 x 256:

    - `float32`: MatMul.
    - `float16`: MatMul of halves; a runtime that has no such kernel computes in float32, which the
      board's agent notices.
    - `int8`: MatMulInteger of unsigned activations by signed weights into int32, no requantising.
      Of the integer products that was the fastest, or as fast as any, on x86 (VPDPBUSD takes just
      these signs; with signed activations the same runtime was eleven times slower there) and on
      emulated Cortex-A72 and A76 (where both signs reach SDOT or UDOT).

    The archive holds `probes.json`, a list of {"file", "dtype", "operator", "side"}, and the
    files.
    """
    import numpy as np
    from onnx import TensorProto

    weights = ((np.arange(SIDE * SIDE, dtype=np.int64) * 48271 % 255) - 127).reshape(SIDE, SIDE)
    real = (weights / 127).astype(np.float32)
    half = real.astype(np.float16)
    forms = [
        ("float32", "MatMul", TensorProto.FLOAT, TensorProto.FLOAT, real),
        ("float16", "MatMul", TensorProto.FLOAT16, TensorProto.FLOAT16, half),
        ("int8", "MatMulInteger", TensorProto.UINT8, TensorProto.INT32, weights.astype(np.int8)),
    ]
    entries = []
    files: dict[str, bytes] = {}
    for dtype, operator, given, made, constant in forms:
        file = f"{dtype}.onnx"
        entries.append({"file": file, "dtype": dtype, "operator": operator, "side": SIDE})
        model = _model(dtype, operator, given, made, constant)
        files[file] = model.SerializeToString(deterministic=True)
    files[MANIFEST] = json.dumps(entries, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return buffer.getvalue()


def _model(name: str, operator: str, given: int, made: int, constant: object) -> onnx.ModelProto:
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        name,
        [helper.make_tensor_value_info("left", given, ["rows", SIDE])],
        [helper.make_tensor_value_info("product", made, ["rows", SIDE])],
        [numpy_helper.from_array(constant, "right")],  # type: ignore[arg-type]
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)

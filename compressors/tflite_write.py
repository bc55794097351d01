"""TFLite files as FlatSat writes them: equal bytes for equal networks, aligned for any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_ALIGNMENT = 16
_SIGNATURE = b"serving_default"


def normalise(data: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return a converter's file without what tells where and how it was made.

    Metadata, descriptions and the names of inner tensors (which hold Python's class names, a tenth
    of a small file) are dropped; inputs and outputs get the names that are given. Buffers that the
    quantiser puts behind the FlatBuffer go inside, which older runtimes know, each at a multiple of
    16 bytes as the schema demands and the Python writer omits.

    Args:
        data: a sound file of one graph.
        inputs: their names, in the order of the file.
        outputs: likewise.
    """
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    (graph,) = model.subgraphs
    model.description = None
    model.metadata = model.metadataBuffer = None
    graph.name = None
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"t{index}"
    for names, indices in ((inputs, graph.inputs), (outputs, graph.outputs)):
        for name, index in zip(names, indices, strict=True):
            graph.tensors[index].name = name
    signature = schema.SignatureDefT()
    signature.signatureKey = _SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = _tensor_map(schema, inputs, graph.inputs)
    signature.outputs = _tensor_map(schema, outputs, graph.outputs)
    model.signatureDefs = [signature]
    _gather_buffers(schema, model, data)
    return _packed(model)


def _tensor_map(schema: Any, names: Sequence[str], indices: Sequence[int]) -> list[Any]:
    maps = []
    for name, index in zip(names, indices, strict=True):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, int(index)
        maps.append(entry)
    return maps


def _gather_buffers(schema: Any, model: Any, data: bytes) -> None:
    """Leave one empty buffer and those that tensors use, in the order of the tensors."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        """A buffer whose bytes start at a multiple of 16."""

        def Pack(self, builder: Any) -> Any:  # noqa: N802  the generated code's name
            values = bytes(self.data)
            builder.StartVector(1, len(values), _ALIGNMENT)
            builder.head = builder.head - len(values)
            builder.Bytes[builder.head : builder.head + len(values)] = values
            held = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, held)
            return schema.BufferEnd(builder)

    kept: list[Any] = [schema.BufferT()]
    places: dict[int, int] = {}
    for tensor in model.subgraphs[0].tensors:
        old = tensor.buffer
        if old not in places:
            buffer = model.buffers[old]
            if buffer.offset > 1:
                values = data[buffer.offset : buffer.offset + buffer.size]
            else:
                values = b"" if buffer.data is None else np.asarray(buffer.data).tobytes()
            places[old] = len(kept) if values else 0
            if values:
                kept.append(Aligned())
                kept[-1].data = values
        tensor.buffer = places[old]
    model.buffers = kept


def _packed(model: Any) -> bytes:
    import flatbuffers

    size = sum(len(buffer.data or b"") for buffer in model.buffers)
    builder = flatbuffers.Builder(size + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())

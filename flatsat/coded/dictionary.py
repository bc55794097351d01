"""What model files say beside their weights, in words that many of them share.

The skeleton's DEFLATE stream may refer to it as if it stood before the skeleton (RFC 1950's preset
dictionary, without that format's header). It is part of the format: a change is a new version.
"""

from __future__ import annotations

_DENSE = (
    b'\x12\x12/fc%d/Gemm_output_0\x1a\t/fc%d/Gemm"\x04Gemm*\x0f\n\x05alpha\x15\x00\x00\x80?'
    b"\xa0\x01\x01*\x0e\n\x04beta\x15\x00\x00\x80?\xa0\x01\x01*\r\n\x06transB\x18\x01\xa0\x01\x02"
)
_CONVOLUTION = (
    b'_output_0\x1a\x0b/conv%d/Conv"\x04Conv*\x12\n\tdilations@\x01@\x01\xa0\x01\x07*\x0c\n\x05group'
    b"\x18\x01\xa0\x01\x02*\x15\n\x0ckernel_shape@%c@%c\xa0\x01\x07*\x11\n\x04pads@%c@%c@%c@%c"
    b"\xa0\x01\x07*\x10\n\x07strides@\x01@\x01\xa0\x01\x07\n"
)
_POOL = (
    b'/pool%d/MaxPool_output_0\x1a\x0e/pool%d/MaxPool"\x07MaxPool*\x10\n\tceil_mode\x18\x00\xa0\x01'
    b"\x02*\x12\n\tdilations@\x01@\x01\xa0\x01\x07*\x15\n\x0ckernel_shape@\x02@\x02\xa0\x01\x07*\x11"
    b"\n\x04pads@\x00@\x00@\x00@\x00\xa0\x01\x07*\x10\n\x07strides@\x02@\x02\xa0\x01\x07\n"
)
_RELU = b'\x12\x14/relu%d/Relu_output_0\x1a\x0b/relu%d/Relu"\x04Relu\n'
_WEIGHTS = b"\x10\x01B\x0cconv%d.weightJ*b\x10\x01B\nconv%d.biasJ"
_DENSE_WEIGHTS = b"\x10\x01B\nfc%d.weightJ*\x10\x01B\x08fc%d.biasJ"


def _pads(size: int) -> bytes:
    return _CONVOLUTION % (1, size, size, *[size // 2] * 4)


SKELETON = b"".join(
    (
        b"QuantizeLinear_output_0DequantizeLinear_scale_zero_point_quantizedaxisac.onnx.quantize",
        b'ConstantOfShapeReshapeTransposepermConcatSliceResizeSigmoidMulClipminmaxSoftmax"\x06',
        b'/GlobalAveragePool_output_0"\x11GlobalAveragePoolAveragePoolcount_include_pad',
        b"/features/features.0.0layerdownsample.0branchconv_transpose/ConvTransposeoutput_padding",
        b"/depthwise/Conv_output_0/pointwise/Conv_output_0\x12\x1d/blocks/blocks.0/Add_output_0",
        b'\x1a\x14/blocks/blocks.1/Add"\x03Add\n$/blocks/blocks.1/relu2/Relu_output_0\x12$/blocks/',
        b"blocks.2/conv2/Conv_output_0\n\x0eonnx::Conv_203\n\x0eonnx::Conv_104\x12$/blocks/blocks.0",
        b"/conv1/Conv_output_0\x1a\x1b/blocks/blocks.0/conv1/Conv",
        _pads(1),
        _pads(5),
        _pads(3),
        b'\x12\x14/relu/Relu_output_0\x1a\x0b/relu/Relu"\x04Relu\n',
        *(_POOL % (i, i) for i in (1, 2)),
        *(
            b"\n\x0cconv%d.weight\n\nconv%d.bias\x12\x14/conv%d/Conv" % (i, i, i)
            + _CONVOLUTION % (i, 5, 5, 0, 0, 0, 0)
            for i in (2, 1)
        ),
        *(_WEIGHTS % (i, i) for i in (1, 2)),
        *(_DENSE_WEIGHTS % (i, i) for i in (1, 2, 3)),
        b"\x08\x08\x12\x07pytorch\x1a\x062.13.0:\n\x05image\x12\x19/flatten/Flatten_output_0\x1a\x10",
        b'/flatten/Flatten"\x07Flatten*\x0b\n\x04axis\x18\x01\xa0\x01\x02\n\x86\x01\n\x19/flatten/',
        b"Flatten_output_0",
        *(b"\n\nfc%d.weight\n\x08fc%d.bias" % (i, i) + _DENSE % (i, i) for i in (3, 1, 2)),
        *(_RELU % (i, i) for i in (2, 1)),
        b'\x12\x06logits\x1a\t/fc3/Gemm"\x04Gemm*\x0f\n\x05alpha\x15\x00\x00\x80?\xa0\x01\x01*\x0e\n',
        b"\x04beta\x15\x00\x00\x80?\xa0\x01\x01*\r\n\x06transB\x18\x01\xa0\x01\x02\x12\nmain_graph*",
        b"Z$\n\x05image\x12\x1b\n\x19\x08\x01\x12\x15\n\x07\x12\x05batch\n\x02\x08\x01\n\x02\x08\x1c",
        b"\n\x02\x08\x1cb\x1d\n\x06logits\x12\x13\n\x11\x08\x01\x12\r\n\x07\x12\x05batch\n\x02\x08\n",
        b"B\x04\n\x00\x10\x11",
    )
)
"""Bytes that a skeleton may refer to, the likeliest last."""

"""Deep Compression's sizes by arithmetic: from kept weights, bits and fillers to bytes.

Han et al. 2016, "Deep Compression", sections 2 to 4. A layer is stored as entries, each a code of
its shared value and the index to the entry before; an entry stands for a kept weight, or is a
filler where the index is too narrow. To that come the codebook and the biases, 4 bytes a number.

Nothing here looks at bytes that were written: `coded_bytes` is what a coder has to come to.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsat.coded.dictionary import SKELETON
from flatsat.compressors.entropy import huffman_bits, huffman_lengths
from flatsat.datasets.architectures import layers

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class Entries:
    """How often what is stored occurs.

    Attributes:
        kept: weights other than zero.
        fillers: zeros stored between them.
        codes: for each level how many entries have it, fillers among those of zero.
        indices: for each index from 0 to 2^bits - 1 how many entries have it.
    """

    kept: int
    fillers: int
    codes: tuple[int, ...]
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        """Kept weights and fillers."""
        return self.kept + self.fillers


def entries(levels: Array, zero: int, size: int, index_bits: int) -> Entries:
    """Count a tensor's entries from the gaps between its kept weights.

    A gap of g zeros takes floor(g / 2^b) fillers, each of which passes over 2^b - 1 elements, and
    leaves g mod 2^b to the kept weight's own index. Zeros after the last kept weight cost nothing.

    Args:
        levels: (elements,) each element's level, from 0 to `size` - 1.
        zero: the level of zero.
        size: how many levels.
        index_bits: b, of an index.
    """
    place = np.flatnonzero(levels != zero)
    gaps = np.diff(place, prepend=-1) - 1
    base = 1 << index_bits
    fillers = int((gaps // base).sum())
    codes = np.bincount(levels[place], minlength=size)
    codes[zero] = fillers
    indices = np.bincount(gaps % base, minlength=base)
    indices[base - 1] += fillers
    return Entries(len(place), fillers, tuple(codes.tolist()), tuple(indices.tolist()))


def fixed_bytes(count: int, code_bits: float, index_bits: float) -> int:
    """Return the bytes of so many entries of these bits each (means, after Huffman coding)."""
    return -int(-count * (code_bits + index_bits) // 8)


def expected_fillers(kept: float, density: float, index_bits: int) -> float:
    """Return the mean number of fillers where each weight is kept on its own with one probability.

    A gap is geometric: P(g >= m 2^b) = (1 - density)^(m 2^b), whose sum over m >= 1 is the mean of
    floor(g / 2^b).
    """
    far = (1.0 - density) ** (1 << index_bits)
    return kept * far / (1.0 - far) if far < 1 else 0.0


@dataclass(frozen=True)
class CodedTensor:
    """A tensor of few levels, as a coder is told of it.

    Attributes:
        levels: (elements,) each element's level, from 0 to `size` - 1.
        zero: the level of zero.
        size: how many levels there are.
        columns: of the matrix that it is.
        index_bits: of a relative index.
        gap_bytes: of the model file between the tensor before and this one.
        first: number of the lowest level where the codebook is a step's multiples; None: the
            codebook holds every level.
    """

    levels: Array
    zero: int
    size: int
    columns: int
    index_bits: int
    gap_bytes: int
    first: int | None = None

    @property
    def codebook_bytes(self) -> int:
        """Bytes of the levels: a number each, or lowest, step, first and whether 0 is put in."""
        if self.first is None:
            return _NUMBER_BYTES * self.size
        zigzag = 2 * self.first if self.first >= 0 else -2 * self.first - 1
        return 2 * _NUMBER_BYTES + _number(zigzag) + 1


def coded_bytes(
    tensors: Sequence[CodedTensor], *, rest: bytes, file_bytes: int, suffix: str
) -> int:
    """Return how long a file of Huffman-coded tensors is (docs/coded-weights.md).

    Of each tensor the shorter form counts: kept weights with indices, or a code for each element.

    Args:
        tensors: in the order of the model file.
        rest: the model file without them.
        file_bytes: length of the model file.
        suffix: of its name.
    """
    skeleton = _deflated(rest, SKELETON)
    # Mark, version, hash, length; suffix; skeleton; tensors; the context coder's empty stream.
    return (
        (4 + 1 + 32 + _number(file_bytes))
        + (1 + len(suffix))
        + (_number(skeleton) + skeleton)
        + (_number(len(tensors)) + sum(_tensor_bytes(tensor) for tensor in tensors))
        + _number(0)
    )


def _tensor_bytes(tensor: CodedTensor) -> int:
    elements = len(tensor.levels)
    every = np.bincount(tensor.levels, minlength=tensor.size).tolist()
    forms = [_payload_bytes(elements, [every])]
    if every[tensor.zero]:
        stored = entries(tensor.levels, tensor.zero, tensor.size, tensor.index_bits)
        forms.append(_payload_bytes(stored.count, [stored.codes, stored.indices]))
    # Gap, elements, their kind, the coding; codebook: its kind, size, zero; columns; codes.
    total: int = (
        (_number(tensor.gap_bytes) + _number(elements) + 1 + 1)
        + (1 + _number(tensor.size) + _number(tensor.zero) + tensor.codebook_bytes)
        + _number(tensor.columns)
        + min(forms)
    )
    return total


def _payload_bytes(count: int, counts: Sequence[Sequence[int]]) -> int:
    """Return the bytes of so many entries: index bits, count, code lengths, codes, indices."""
    lengths = _deflated(b"".join(bytes(huffman_lengths(of)) for of in counts))
    parts = [lengths, *(-(-huffman_bits(of) // 8) for of in counts)]
    return 1 + _number(count) + sum(_number(part) + part for part in parts)


def _number(value: int) -> int:
    """Return the bytes of a number of seven bits a byte."""
    return max(1, -(-value.bit_length() // 7))


def _deflated(data: bytes, dictionary: bytes = b"") -> int:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return len(packer.compress(data)) + len(packer.flush())


@dataclass(frozen=True)
class PaperLayer:
    """A row of the paper's tables 4 and 5, with the biases that the reference network has.

    Attributes:
        name: as the paper calls it.
        weights, biases: of the reference network.
        density: share of the weights kept, rounded as printed.
        code_bits, index_bits: of an entry.
        huffman_code_bits, huffman_index_bits: means of an entry after Huffman coding.
        shared_rate, huffman_rate: bytes over the dense layer's, as printed: before and after
            Huffman coding.
    """

    name: str
    weights: int
    biases: int
    density: float
    code_bits: int
    index_bits: int
    huffman_code_bits: float
    huffman_index_bits: float
    shared_rate: float
    huffman_rate: float

    @property
    def kept(self) -> float:
        """Kept weights."""
        return self.weights * self.density

    @property
    def dense_bytes(self) -> int:
        """Of weights and biases as float32."""
        return _NUMBER_BYTES * (self.weights + self.biases)

    @property
    def beside_bytes(self) -> int:
        """Codebook and biases."""
        return _NUMBER_BYTES * ((1 << self.code_bits) + self.biases)

    @property
    def independent_fillers(self) -> float:
        """Fillers if pruning chose its weights without regard to where they stand."""
        return expected_fillers(self.kept, self.density, self.index_bits)

    @property
    def implied_fillers(self) -> float:
        """Fillers that the printed size before Huffman coding leaves room for."""
        bits = 8 * (self.shared_rate * self.dense_bytes - self.beside_bytes)
        return max(0.0, bits / (self.code_bits + self.index_bits) - self.kept)

    def shared_bytes(self, fillers: float) -> int:
        """Return the bytes before Huffman coding."""
        stored = round(self.kept + fillers)
        return fixed_bytes(stored, self.code_bits, self.index_bits) + self.beside_bytes

    def huffman_bytes(self, fillers: float) -> int:
        """Return the bytes after Huffman coding."""
        stored = round(self.kept + fillers)
        bits = (self.huffman_code_bits, self.huffman_index_bits)
        return fixed_bytes(stored, *bits) + self.beside_bytes


def paper_layers(network: str) -> tuple[PaperLayer, ...]:
    """Return the paper's rows of "alexnet-grouped" (table 4) or "vgg16" (table 5)."""
    index_bits, rows = _PAPER[network]
    reference = layers(network, classes=1000, input_shape=(3, 224, 224))
    return tuple(
        PaperLayer(
            name,
            layer.weights,
            layer.parameters - layer.weights,
            kept / 100,
            5 if name.startswith("fc") else 8,
            index_bits,
            code,
            index,
            shared / 100,
            coded / 100,
        )
        for (name, kept, code, index, shared, coded), layer in zip(rows, reference, strict=True)
    )


# Name, weights kept (%), bits of a code and of an index after Huffman coding, size before and after
# it (%). Before it a code has 8 bits in convolutions and 5 in dense layers.
_PAPER: dict[str, tuple[int, tuple[tuple[str, float, float, float, float, float], ...]]] = {
    "alexnet-grouped": (
        4,
        (
            ("conv1", 84, 6.3, 1.2, 32.6, 20.53),
            ("conv2", 38, 5.5, 2.3, 14.5, 9.43),
            ("conv3", 35, 5.1, 2.6, 13.1, 8.44),
            ("conv4", 37, 5.2, 2.5, 14.1, 9.11),
            ("conv5", 37, 5.6, 2.5, 14.0, 9.43),
            ("fc6", 9, 3.9, 3.2, 3.0, 2.39),
            ("fc7", 9, 3.6, 3.7, 3.0, 2.46),
            ("fc8", 25, 4.0, 3.2, 7.3, 5.85),
        ),
    ),
    "vgg16": (
        5,
        (
            ("conv1_1", 58, 6.8, 1.7, 40.0, 29.97),
            ("conv1_2", 22, 6.5, 2.6, 9.8, 6.99),
            ("conv2_1", 34, 5.6, 2.4, 14.3, 8.91),
            ("conv2_2", 36, 5.9, 2.3, 14.7, 9.31),
            ("conv3_1", 53, 4.8, 1.8, 21.7, 11.15),
            ("conv3_2", 24, 4.6, 2.9, 9.7, 5.67),
            ("conv3_3", 42, 4.6, 2.2, 17.0, 8.96),
            ("conv4_1", 32, 4.6, 2.6, 13.1, 7.29),
            ("conv4_2", 27, 4.2, 2.9, 10.9, 5.93),
            ("conv4_3", 34, 4.4, 2.5, 14.0, 7.47),
            ("conv5_1", 35, 4.7, 2.5, 14.3, 8.00),
            ("conv5_2", 29, 4.6, 2.7, 11.7, 6.52),
            ("conv5_3", 36, 4.6, 2.3, 14.8, 7.79),
            ("fc6", 4, 3.6, 3.5, 1.6, 1.10),
            ("fc7", 4, 4.0, 4.3, 1.5, 1.25),
            ("fc8", 23, 4.0, 3.4, 7.1, 5.24),
        ),
    ),
}

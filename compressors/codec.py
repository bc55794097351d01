"""Coded weights for uplink: a model file's tensors, each by the coder that was asked for.

The format is described in docs/coded-weights.md, the readers are `flatsat.coded`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from pydantic import Field

import flatsat.coded
from flatsat.coded.container import (
    ANS,
    CONTEXT,
    FLOAT32,
    HUFFMAN,
    INT8,
    MAGIC,
    PLAIN,
    PLANES,
    RANGE,
    SELF,
    STEPS,
    TABLE,
    VERSION,
    decode,
    plausible_bytes,
)
from flatsat.coded.context import Coder
from flatsat.coded.dictionary import SKELETON
from flatsat.coded.errors import CodedError
from flatsat.coded.native import Library
from flatsat.compressors.base import StepParams
from flatsat.compressors.csr import relative_rows
from flatsat.compressors.entropy import huffman_bytes, huffman_lengths
from flatsat.compressors.levels import Levels, find_levels, table_bytes
from flatsat.errors import DataError, RecipeError
from flatsat.native import NoCompiler, build_library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.compressors.tensor_ranges import TensorRange

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
SUFFIX = ".fscw"
_TRIED_ELEMENTS = 1 << 16
"""Periods are tried on so many: a tensor's first rows choose as all do, but for a few bytes."""


def coder_library(cache_dir: Path | None = None) -> Library | None:
    """Return the compiled coder, or None where there is no C compiler; Python does the same."""
    source = Path(flatsat.coded.__file__).with_name("coder.c")
    try:
        return Library(str(build_library(source, cache_dir=cache_dir)))
    except (NoCompiler, OSError):
        return None


@dataclass(frozen=True)
class Symbols:
    """A tensor as symbols.

    Attributes:
        tensor: where it came from.
        values: (elements,) int64; 0 is the level of zero.
        levels: what they stand for; None: each is its own level.
        zero: index of symbol 0 among the levels.
        size: how many levels.
    """

    tensor: TensorRange
    values: Array
    levels: Levels | None
    zero: int
    size: int

    @property
    def columns(self) -> int:
        """Of the matrix (outputs, everything else)."""
        shape = self.tensor.shape
        rows = shape[0] if len(shape) > 1 else 1
        return max(self.tensor.elements // max(rows, 1), 1)

    def head(self) -> bytes:
        """Return what describes the levels and the matrix."""
        if self.levels is None:
            return bytes([SELF]) + number(self.zero) + number(self.columns)
        spaced = self.levels.spaced
        told = bytes([TABLE if spaced is None else STEPS]) + number(self.size) + number(self.zero)
        if spaced is None:
            told += table_bytes(self.levels)
        else:
            low, step, first, inserted = spaced
            told += struct.pack("<ff", low, step) + number(_zigzag(first)) + bytes([inserted])
        return told + number(self.columns)

    def counts(self) -> list[int]:
        """Return how often each level occurs."""
        return np.bincount(self.values + self.zero, minlength=self.size).tolist()  # type: ignore[no-any-return]


class Writer(Protocol):
    """How one coder stores a tensor of few levels."""

    coding: int

    def body(self, symbols: Symbols) -> bytes:
        """Return what follows the description of levels and matrix."""


class _Codec:
    """What all coders share: files in, files out, and the check that they are the same."""

    name: ClassVar[str] = ""

    def encode(self, data: bytes, tensors: Sequence[TensorRange], suffix: str = "bin") -> bytes:
        """Return the coded file; it was decoded, and gave `data`.

        Args:
            data: the model file.
            tensors: what of it is coded; the rest is deflated.
            suffix: of the model file's name, without the dot.

        Raises:
            RecipeError: a tensor lies outside of the file.
        """
        library = coder_library()
        streams = _Streams(library)
        gaps, parts, at = [], [], 0
        for tensor in tensors:
            end = tensor.offset + tensor.size_bytes
            if tensor.offset < at or end > len(data):
                raise RecipeError(f"{self.name}: a tensor at byte {tensor.offset} is out of place")
            gaps.append(data[at : tensor.offset])
            raw = data[tensor.offset : end]
            head = number(tensor.offset - at) + number(tensor.elements) + bytes([tensor.element])
            parts.append(head + self._tensor(tensor, raw, streams))
            at = end
        skeleton = _deflate(b"".join(gaps) + data[at:], SKELETON)
        stream = streams.finish()
        coded = b"".join(
            (
                MAGIC,
                bytes([VERSION]),
                hashlib.sha256(data).digest(),
                number(len(data)),
                bytes([len(suffix)]) + suffix.encode(),
                number(len(skeleton)) + skeleton,
                number(len(parts)) + b"".join(parts),
                number(len(stream)) + stream,
            )
        )
        if len(data) > plausible_bytes(len(coded)):
            raise RecipeError(
                f"{self.name}: {len(coded)} bytes for {len(data)}: readers refuse to believe that",
                hint="leave the code table out: the network is next to empty",
            )
        if decode(coded, library=library) != data:
            raise AssertionError(f"{self.name} does not give back what it was given")
        return coded

    def decode(self, coded: bytes) -> bytes:
        """Return the model file.

        Raises:
            DataError: `coded` is damaged, or no coded file.
        """
        try:
            return decode(coded, library=coder_library())
        except CodedError as error:
            raise DataError(str(error)) from error

    def _tensor(self, tensor: TensorRange, raw: bytes, streams: _Streams) -> bytes:
        symbols = _symbols(tensor, raw)
        if symbols is None:
            return self._floats(tensor, raw, streams)
        return self._levels(symbols, streams)

    def _levels(self, symbols: Symbols, streams: _Streams) -> bytes:
        raise NotImplementedError

    def _floats(self, _tensor: TensorRange, raw: bytes, _streams: _Streams) -> bytes:
        packed = _deflate(raw)
        return bytes([PLAIN]) + number(len(packed)) + packed


class HuffmanCodec(_Codec):
    """Relative indices and Huffman codes, as in Deep Compression (Han et al. 2016, section 4).

    Of a tensor with zeros the other elements are stored with the difference of their positions, of
    `index_bits` bits; where a difference does not fit, a filler zero is stored in between. Codes of
    levels and indices are Huffman-coded apart. A tensor that would take more with indices than
    with a code for every element is stored without. Elements of many levels are deflated.
    """

    name: ClassVar[str] = "huffman"

    class Params(StepParams):
        """Bits of an index: the paper takes 8 for convolutions and 5 for dense layers."""

        index_bits_conv: int = Field(
            default=8, ge=1, le=16, description="of a convolution's indices"
        )
        index_bits_fc: int = Field(default=5, ge=1, le=16, description="of a dense layer's indices")

    def __init__(self, params: Params | None = None) -> None:
        self.params = self.Params() if params is None else params

    def _levels(self, symbols: Symbols, _streams: _Streams) -> bytes:
        fc = len(symbols.tensor.shape) < 3
        bits = self.params.index_bits_fc if fc else self.params.index_bits_conv
        return bytes([HUFFMAN]) + symbols.head() + huffman_body(symbols, bits)


def huffman_body(symbols: Symbols, index_bits: int) -> bytes:
    """Return a tensor's Huffman codes with relative indices, or without where that is smaller."""
    index = symbols.values + symbols.zero
    forms = [_huffman(index, None, 0, symbols.size)]
    if (symbols.values == 0).any():
        rows = relative_rows((symbols.values != 0).reshape(1, -1), index_bits)
        codes = np.where(rows.source < 0, symbols.zero, index[np.maximum(rows.source, 0)])
        forms.append(_huffman(codes, rows.index, index_bits, symbols.size))
    return min(forms, key=len)


def _huffman(codes: Array, passed: Array | None, index_bits: int, size: int) -> bytes:
    of_codes = huffman_lengths(np.bincount(codes, minlength=size).tolist())
    payload = [huffman_bytes(codes, of_codes)]
    lengths = bytes(of_codes)
    if passed is not None:
        of_indices = huffman_lengths(np.bincount(passed, minlength=1 << index_bits).tolist())
        payload.append(huffman_bytes(passed, of_indices))
        lengths += bytes(of_indices)
    parts = [_deflate(lengths), *payload]
    told = b"".join(number(len(part)) + part for part in parts)
    return bytes([index_bits]) + number(len(codes)) + told


class _StaticCodec(_Codec):
    """One model for all elements of a tensor, by constriction."""

    coding: ClassVar[int] = -1

    class Params(StepParams):
        """It has none."""

    def __init__(self, params: Params | None = None) -> None:
        self.params = self.Params() if params is None else params

    def _levels(self, symbols: Symbols, _streams: _Streams) -> bytes:
        import constriction

        counts = symbols.counts()
        index = (symbols.values + symbols.zero).astype(np.int32)
        if not len(index) or max(counts) == len(index):
            # A model of one level is none.
            return bytes([HUFFMAN]) + symbols.head() + huffman_body(symbols, 16)
        weights = np.array(counts, dtype=np.float64)
        model = constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
        words = self._words(constriction.stream, index, model)
        packed = words.astype("<u4").tobytes()
        told = b"".join(number(count) for count in counts) + number(len(packed)) + packed
        return bytes([self.coding]) + symbols.head() + told

    def _words(self, stream: Any, index: Array, model: Any) -> Array:
        raise NotImplementedError


class RangeCodec(_StaticCodec):
    """Range coding (Martin 1979) with one static model a tensor, by constriction.

    Within 0.1 % of Shannon's bound for independent symbols, and the model's counts beside it.
    """

    name: ClassVar[str] = "range"
    coding: ClassVar[int] = RANGE

    def _words(self, stream: Any, index: Array, model: Any) -> Array:
        encoder = stream.queue.RangeEncoder()
        encoder.encode(index, model)
        found: Array = encoder.get_compressed()
        return found


class AnsCodec(_StaticCodec):
    """Asymmetric numeral systems (Duda 2013) with one static model a tensor, by constriction.

    Within 0.1 % of Shannon's bound for independent symbols, and the model's counts beside it.
    """

    name: ClassVar[str] = "ans"
    coding: ClassVar[int] = ANS

    def _words(self, stream: Any, index: Array, model: Any) -> Array:
        encoder = stream.stack.AnsCoder()
        encoder.encode_reverse(index, model)
        found: Array = encoder.get_compressed()
        return found


class ContextCodec(_Codec):
    """Adaptive binary arithmetic coding with mixed contexts; the smallest, and the default.

    Each element is told by decisions: is it zero, its sign, the length of its magnitude, its bits
    (as in DeepCABAC, Wiedemann et al. 2020, section III). Each decision is predicted from what was
    coded before: neighbours in row and column, densities of the row, of the column and of those
    beside it. The predictions are mixed by weights that learn (logistic mixing, Mahoney 2005).
    Nothing of the model is stored. Elements of many levels are
    coded as which of them are zero, and four planes of bytes of the others.
    """

    name: ClassVar[str] = "context"

    class Params(StepParams):
        """It has none."""

    def __init__(self, params: Params | None = None) -> None:
        self.params = self.Params() if params is None else params

    def _levels(self, symbols: Symbols, streams: _Streams) -> bytes:
        period = streams.add(symbols)
        return bytes([CONTEXT]) + symbols.head() + number(period)

    def _floats(self, tensor: TensorRange, raw: bytes, streams: _Streams) -> bytes:
        words = np.frombuffer(raw, "<u4")
        there = (words != 0).astype(np.int64)
        mask = Symbols(tensor, there, None, 0, 2)
        period = streams.add(mask)
        planes = words[there != 0].view(np.uint8).reshape(-1, 4)[:, ::-1].astype(np.int64) - 128
        for plane in planes.T:
            streams.matrix(plane, 1, len(plane), -128, 127, 0)
        return bytes([PLANES]) + number(mask.columns) + number(period)


@dataclass
class _Streams:
    """The context coder's one stream for a file, begun on first need."""

    library: Library | None
    held: list[tuple[Array, int, int, int, int, int]] = field(default_factory=list)

    def matrix(
        self, values: Array, rows: int, columns: int, low: int, high: int, period: int
    ) -> None:
        self.held.append((values, rows, columns, low, high, period))

    def add(self, symbols: Symbols) -> int:
        """Code a tensor with the period that suits it; return that."""
        columns = symbols.columns
        rows = symbols.tensor.elements // columns
        ends = (rows, columns, -symbols.zero, symbols.size - 1 - symbols.zero)
        best = 0
        periods = [period for period in _periods(symbols.tensor.shape) if period <= columns]
        if len(periods) > 1 and self.library is not None and columns <= _TRIED_ELEMENTS:
            first = min(rows, _TRIED_ELEMENTS // columns)
            some = (symbols.values[: first * columns], first, *ends[1:])
            best = min(periods, key=lambda period: self._alone(*some, period))
        elif periods:
            best = periods[-1]
        self.matrix(symbols.values, *ends, best)
        return best

    def _alone(
        self, values: Array, rows: int, columns: int, low: int, high: int, period: int
    ) -> int:
        assert self.library is not None
        coder = self.library.coder(room=_room(len(values)))
        coder.matrix(_ints(values), rows, columns, low, high, period)
        return len(coder.finish())

    def finish(self) -> bytes:
        """Return the stream; empty where nothing was coded."""
        if not self.held:
            return b""
        total = sum(len(values) for values, *_ in self.held)
        coder: Any = Coder() if self.library is None else self.library.coder(room=_room(total))
        for values, *rest in self.held:
            coder.matrix(_ints(values), *rest)
        coded: bytes = coder.finish()
        return coded


def _room(elements: int) -> int:
    return 8 * elements + 64


def _ints(values: Array) -> array[int]:
    return array("i", values.astype(np.int32).tobytes())


def _periods(shape: tuple[int, ...]) -> list[int]:
    """Return distances at which columns may be alike: a kernel's size, an image's width."""
    if len(shape) == 4:
        # Of a filter (in, height, width) or, in channels-last files, (height, width, in).
        return list(dict.fromkeys((0, shape[2] * shape[3], shape[3])))
    if len(shape) != 2:
        return [0]
    columns = shape[1]
    side = round(columns**0.5)
    likely = [side] if side * side == columns else []
    likely += [n * n for n in (2, 3, 4, 5, 6, 7, 8) if columns % (n * n) == 0 and columns > n * n]
    return list(dict.fromkeys((0, *likely)))


def _symbols(tensor: TensorRange, raw: bytes) -> Symbols | None:
    """Return a tensor as symbols, or None where its floats take too many values."""
    if tensor.element == FLOAT32:
        words = np.frombuffer(raw, "<u4").astype(np.uint32)
        found = find_levels(words)
        if found is None:
            return None
        levels, values = found
        return Symbols(tensor, values, levels, levels.zero, levels.size)
    values = np.frombuffer(raw, np.uint8).astype(np.int64)
    if tensor.element == INT8:
        values = np.frombuffer(raw, np.int8).astype(np.int64) + 128
    # A file's zero point is not known here: the value that most elements have.
    zero = int(np.bincount(values, minlength=256).argmax()) if len(values) else 0
    if tensor.element == INT8:
        zero = 128
    return Symbols(tensor, values - zero, None, zero, 256)


def number(value: int) -> bytes:
    """Return a number as seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return packer.compress(data) + packer.flush()

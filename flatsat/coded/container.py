"""Reading coded files: headers, and the model file piece by piece.

docs/coded-weights.md describes the format byte by byte. What a file says is checked before memory
is taken for it: a coded file may stand for at most `plausible_bytes` of model file, whatever its
header claims.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import zlib
from array import array
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import huffman
from .context import Coder
from .dictionary import SKELETON
from .errors import CodedError

if TYPE_CHECKING:
    from .native import Library

MAGIC = b"FSCW"
VERSION = 1
PLAIN, HUFFMAN, CONTEXT, RANGE, ANS, PLANES = range(6)
INT8, UINT8, FLOAT32 = 1, 2, 4
SELF, TABLE, STEPS = range(3)
CODERS = {PLAIN: "plain", HUFFMAN: "huffman", CONTEXT: "context", RANGE: "range", ANS: "ans"}
CODERS[PLANES] = "planes"
_SIZES = {INT8: 1, UINT8: 1, FLOAT32: 4}
_MOST_TENSORS = 100_000
_MOST_LEVELS = 1 << 16
_ANY = 1 << 62
"""What is read in one piece ends with the file."""
_SPARE_LEVELS = 64
"""So many more than four times a tensor's elements may its evenly spaced levels be."""
_NO_MEMORY = "the coded file stands for more than there is memory for, or is damaged"
_SUFFIX = re.compile(rb"[a-z0-9-]{1,16}")
_DEFLATE = -15


class Tensor(NamedTuple):
    """One coded tensor.

    Attributes:
        gap: bytes of the skeleton before it.
        elements: how many.
        element: INT8, UINT8 or FLOAT32.
        coding: PLAIN, ...
        columns: of the matrix that it is coded as.
        levels: words of four bytes, or none where a symbol is its own level.
        zero: index of the level that symbol 0 stands for.
        size: how many levels.
        period: of the context coder.
        index_bits: of the Huffman coder's relative indices; 0: every element is stored.
        entries: how many codes the Huffman coder has stored.
        lengths: bits of the Huffman codes: levels, then indices.
        counts: of the levels, for static models.
        payload: what is its own; the context coder's stream is shared.
    """

    gap: int
    elements: int
    element: int
    coding: int
    columns: int = 0
    levels: Optional[array[int]] = None
    zero: int = 0
    size: int = 0
    period: int = 0
    index_bits: int = 0
    entries: int = 0
    lengths: bytes = b""
    counts: Tuple[int, ...] = ()
    payload: Tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes in the model file."""
        return self.elements * _SIZES[self.element]


class Header(NamedTuple):
    """A coded file, read but not decoded.

    Attributes:
        sha256: of the model file.
        file_bytes: of the model file.
        suffix: of its name, such as "onnx".
        skeleton: the model file without the tensors.
        tensors: in the order of the file.
        stream: of the context coder.
    """

    sha256: str
    file_bytes: int
    suffix: str
    skeleton: bytes
    tensors: Tuple[Tensor, ...]
    stream: bytes

    @property
    def coder(self) -> str:
        """What most of its weights are coded with."""
        sizes: Dict[str, int] = {}
        for tensor in self.tensors:
            name = CODERS[tensor.coding]
            sizes[name] = sizes.get(name, 0) + tensor.size_bytes
        return max(sizes, key=lambda name: sizes[name]) if sizes else CODERS[PLAIN]


def is_coded(head: bytes) -> bool:
    """Tell by its first bytes whether this is a coded file."""
    return head[: len(MAGIC)] == MAGIC


def plausible_bytes(coded_bytes: int) -> int:
    """Return how large a model file may be at most that was coded in so many bytes."""
    return 4096 * coded_bytes + (1 << 20)


def read_header(data: bytes, limit_bytes: Optional[int] = None) -> Header:
    """Read a coded file without decoding its weights.

    Args:
        data: the whole file.
        limit_bytes: the largest model file to accept; by default what is plausible.

    Raises:
        CodedError: it is none, it is damaged, or its model file would be too large.
    """
    try:
        return _Reader(data, limit_bytes).header()
    except MemoryError:
        raise CodedError(_NO_MEMORY) from None


def decode(
    data: bytes, *, library: Optional[Library] = None, limit_bytes: Optional[int] = None
) -> bytes:
    """Return the model file, bit for bit; its SHA-256 has been checked.

    Args:
        data: the whole coded file.
        library: decodes much quicker than Python does.
        limit_bytes: see `read_header`.

    Raises:
        CodedError: as `read_header`, or what it gives is not what was coded.
    """
    return b"".join(pieces(read_header(data, limit_bytes), library=library))


def pieces(header: Header, *, library: Optional[Library] = None) -> Iterator[bytes]:
    """Give the model file in pieces, a tensor each, so that no more is in memory at once.

    The hash is known after the last piece: what was written is worth nothing until this ends.

    Raises:
        CodedError: see `decode`.
    """
    found = hashlib.sha256()
    coder: Any = None
    at = 0
    for tensor in header.tensors:
        between = header.skeleton[at : at + tensor.gap]
        at += tensor.gap
        if tensor.coding in (CONTEXT, PLANES) and coder is None:
            coder = Coder(header.stream) if library is None else library.coder(header.stream)
        try:
            weights = _tensor(tensor, coder, library)
        except MemoryError:
            raise CodedError(_NO_MEMORY) from None
        for piece in (between, weights):
            found.update(piece)
            yield piece
    if coder is not None:
        coder.finish()
    found.update(header.skeleton[at:])
    yield header.skeleton[at:]
    if found.hexdigest() != header.sha256:
        raise CodedError("the coded file is damaged: what it gives has another SHA-256")


def _tensor(tensor: Tensor, coder: Any, library: Optional[Library]) -> bytes:
    if tensor.coding == PLAIN:
        return _inflate(tensor.payload[0], tensor.size_bytes, "a tensor")
    if tensor.coding == PLANES:
        return _planes(tensor, coder)
    if tensor.coding == CONTEXT:
        rows = tensor.elements // tensor.columns if tensor.columns else 0
        low, high = -tensor.zero, tensor.size - 1 - tensor.zero
        symbols = coder.matrix(None, rows, tensor.columns, low, high, tensor.period)
    elif tensor.coding == HUFFMAN:
        symbols = _relative(tensor, library)
    else:
        symbols = _static(tensor)
    return _bytes_of(tensor, symbols, library)


def _planes(tensor: Tensor, coder: Any) -> bytes:
    """Return floats of which it is told where they are 0.0, and the bytes of the others."""
    rows = tensor.elements // tensor.columns
    there = coder.matrix(None, rows, tensor.columns, 0, 1, tensor.period)
    count = sum(there)
    words = bytearray(4 * count)
    for number in range(4):
        plane = coder.matrix(None, 1, count, -128, 127, 0)
        words[3 - number :: 4] = bytes(symbol + 128 for symbol in plane)
    if count == tensor.elements:
        return bytes(words)
    out = bytearray(4 * tensor.elements)
    at = 0
    for index, is_there in enumerate(there):
        if is_there:
            out[4 * index : 4 * index + 4] = words[at : at + 4]
            at += 4
    return bytes(out)


def _bytes_of(tensor: Tensor, symbols: Any, library: Optional[Library]) -> bytes:
    """Return the elements that symbols stand for."""
    if tensor.levels is None:
        shift = tensor.zero - (128 if tensor.element == INT8 else 0)
        try:
            if tensor.element == INT8:
                return array("b", (symbol + shift for symbol in symbols)).tobytes()
            return bytes(symbol + shift for symbol in symbols)
        except (OverflowError, ValueError):
            raise CodedError("the coded weights are damaged: a level that isn't there") from None
    if library is not None:
        return library.levels(symbols, tensor.levels, tensor.zero)
    levels, zero = tensor.levels, tensor.zero
    if any(not 0 <= symbol + zero < tensor.size for symbol in symbols):
        raise CodedError("the coded weights are damaged: a level that isn't there")
    return _little(array("I", (levels[symbol + zero] for symbol in symbols)))


def _relative(tensor: Tensor, library: Optional[Library]) -> Any:
    """Return the symbols of codes and relative indices."""
    read: Callable[[bytes, bytes, int], array[int]]
    read = huffman.decode if library is None else library.huffman
    codes = read(tensor.payload[0], tensor.lengths[: tensor.size], tensor.entries)
    if not tensor.index_bits:
        return array("i", (code - tensor.zero for code in codes))
    passed = read(tensor.payload[1], tensor.lengths[tensor.size :], tensor.entries)
    out = array("i", (0,)) * tensor.elements
    at = -1
    for code, over in zip(codes, passed):
        at += over + 1
        if at >= tensor.elements:
            raise CodedError("the coded weights are damaged: an index beyond the end")
        out[at] = code - tensor.zero
    return out


def _static(tensor: Tensor) -> Any:
    """Return the symbols of a stream with one model for all: constriction's own formats."""
    try:
        import constriction
        import numpy as np
    except ImportError:
        raise CodedError(
            "this file is coded with %s, and constriction is not installed here"
            % CODERS[tensor.coding]
        ) from None
    counts = np.array(tensor.counts, dtype=np.float64)
    words = np.frombuffer(tensor.payload[0], dtype="<u4").astype(np.uint32)
    try:
        # It refuses a distribution of one level, which no writer stores so.
        model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
        if tensor.coding == RANGE:
            decoder = constriction.stream.queue.RangeDecoder(words)
        else:
            decoder = constriction.stream.stack.AnsCoder(words)
        found = decoder.decode(model, tensor.elements)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        # A panic of its Rust code is no Exception, and may take several lines.
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CodedError("the coded weights are damaged: %s" % line) from None
    return array("i", (found.astype(np.int32) - tensor.zero).tobytes())


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


def _inflate(packed: bytes, size: int, what: str, dictionary: bytes = b"") -> bytes:
    """Return exactly `size` bytes, never holding more."""
    reader = zlib.decompressobj(_DEFLATE, zdict=dictionary)
    try:
        data = reader.decompress(packed, size + 1) if size else reader.decompress(packed, 1)
    except zlib.error as error:
        raise CodedError("%s of the coded file is damaged: %s" % (what, error)) from None
    if len(data) != size or not reader.eof or reader.unused_data:
        raise CodedError("%s of the coded file has another length than it says" % what)
    return data


class _Reader:
    def __init__(self, data: bytes, limit_bytes: Optional[int]) -> None:
        self._data = data
        self._at = 0
        self._limit = plausible_bytes(len(data)) if limit_bytes is None else limit_bytes

    def header(self) -> Header:
        if not is_coded(self._data):
            raise CodedError("this is no file of coded weights: it does not begin with FSCW")
        self._at = len(MAGIC)
        version = self.byte()
        if version != VERSION:
            raise CodedError("coded weights of version %d; this reads version 1" % version)
        sha256 = self.take(32).hex()
        file_bytes = self.number(self._limit, "the model file")
        suffix = self.take(self.byte())
        if not _SUFFIX.fullmatch(suffix):
            raise CodedError("the coded file is damaged: no suffix of a file's name")
        packed = self.take(self.number(_ANY, "the skeleton"))
        tensors: List[Tensor] = []
        inside = gaps = 0
        for _ in range(self.number(_MOST_TENSORS, "the number of tensors")):
            tensor = self._tensor(file_bytes - inside)
            inside += tensor.size_bytes
            gaps += tensor.gap
            tensors.append(tensor)
        if inside + gaps > file_bytes:
            raise CodedError("the coded file is damaged: more tensors than file")
        stream = self.take(self.number(_ANY, "the stream"))
        if self._at != len(self._data):
            raise CodedError("the coded file is damaged: bytes behind its end")
        skeleton = _inflate(packed, file_bytes - inside, "the skeleton", SKELETON)
        return Header(sha256, file_bytes, suffix.decode(), skeleton, tuple(tensors), stream)

    def _tensor(self, left: int) -> Tensor:
        gap = self.number(self._limit, "a gap")
        count = self.number(left, "a tensor")
        element, coding = self.byte(), self.byte()
        if element not in _SIZES or coding not in CODERS or count * _SIZES[element] > left:
            raise CodedError("the coded file is damaged: no such tensor")
        tensor = Tensor(gap, count, element, coding)
        if coding == PLAIN:
            return tensor._replace(payload=(self._packed(),))
        if coding == PLANES:
            if element != FLOAT32:
                raise CodedError("the coded file is damaged: planes of no floats")
        else:
            tensor = self._levels(tensor)
        columns = self.number(max(count, 1), "a row")
        if columns < 1 or count % columns:
            raise CodedError("the coded file is damaged: rows of unequal length")
        tensor = tensor._replace(columns=columns)
        if coding in (CONTEXT, PLANES):
            return tensor._replace(period=self.number(columns, "a period"))
        if coding == HUFFMAN:
            return self._codes(tensor)
        counts = tuple(self.number(count, "a count") for _ in range(tensor.size))
        if sum(counts) != count:
            raise CodedError("the coded file is damaged: counts that are not the tensor's")
        payload = self._packed()
        if len(payload) % 4 or not count:
            raise CodedError("the coded file is damaged: a stream of broken words")
        return tensor._replace(counts=counts, payload=(payload,))

    def _levels(self, tensor: Tensor) -> Tensor:
        kind = self.byte()
        if kind == SELF and tensor.element != FLOAT32:
            return tensor._replace(zero=self.number(255, "a zero"), size=256)
        if kind not in (TABLE, STEPS) or tensor.element != FLOAT32:
            raise CodedError("the coded file is damaged: no such levels")
        most = _MOST_LEVELS
        if kind == STEPS:
            # They take no bytes here, but memory and time later.
            most = min(most, 4 * tensor.elements + _SPARE_LEVELS)
        size = self.number(most, "the number of levels")
        zero = self.number(max(size - 1, 0), "a zero")
        if not size:
            raise CodedError("the coded file is damaged: no levels")
        if kind == TABLE:
            levels = array("I", self.take(4 * size))
            if sys.byteorder == "big":
                levels.byteswap()
        else:
            low, step = struct.unpack("<ff", self.take(8))
            first = self.number(2 * _MOST_LEVELS, "a first level")
            # Zigzag: odd numbers are negative ones.
            first = first >> 1 ^ -(first & 1)
            levels = steps(low, step, first, size, zero if self.byte() else None)
        return tensor._replace(levels=levels, zero=zero, size=size)

    def _codes(self, tensor: Tensor) -> Tensor:
        index_bits = self.byte()
        if index_bits > 16:
            raise CodedError("the coded file is damaged: indices of %d bits" % index_bits)
        entries = self.number(tensor.elements, "the number of entries")
        indices = 1 << index_bits if index_bits else 0
        packed = self._packed()
        lengths = _inflate(packed, tensor.size + indices, "a Huffman code")
        if not index_bits and entries != tensor.elements:
            raise CodedError("the coded file is damaged: fewer codes than elements")
        payload = (self._packed(), self._packed() if index_bits else b"")
        if entries > 8 * len(payload[0]):
            raise CodedError("the coded file is damaged: more codes than bits")
        return tensor._replace(
            index_bits=index_bits, entries=entries, lengths=lengths, payload=payload
        )

    def _packed(self) -> bytes:
        return self.take(self.number(_ANY, "a payload"))

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise CodedError("the coded file ends too early")
        data = self._data[self._at : end]
        self._at = end
        return data

    def number(self, most: int, what: str) -> int:
        """Read a number of seven bits a byte, the lowest first."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 63:
                raise CodedError("the coded file is damaged: a number without end")
        if value > most:
            raise CodedError("the coded file is damaged, or too large: %s of %d" % (what, value))
        return value


def steps(low: float, step: float, first: int, size: int, zero: Optional[int]) -> array[int]:
    """Return evenly spaced levels as words: float32(low + (first + i) step) for i = 0, 1, ...

    Args:
        low: float32; sum and product are computed in float64.
        step: float32.
        first: number of the lowest level.
        size: how many levels.
        zero: where 0.0 is put between them, or None where it isn't.

    Raises:
        CodedError: a level is beyond float32.
    """
    inserted = zero is not None and zero < size
    count = size - inserted
    values = [low + number * step for number in range(first, first + count)]
    try:
        # They ascend or descend, so that no other can be too large; an array would not say so.
        struct.pack("<ff", values[0] if values else 0.0, values[-1] if values else 0.0)
    except OverflowError:
        raise CodedError("the coded file is damaged: levels beyond float32") from None
    if inserted:
        values.insert(zero or 0, 0.0)
    return array("I", array("f", values).tobytes())

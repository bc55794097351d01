"""The "context" coder in Python: the same model and the same bytes as `coder.c`, for where no C is.

Adaptive binary arithmetic coding of integer matrices. Each decision (is it zero, its sign, the
length of its magnitude, its bits) is predicted by several counters under contexts of what was coded
before; two sets of weights mix their logits, and learn. Integers only. docs/coded-weights.md has
the model in words.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

from .errors import CodedError

TAIL = 2560
STEP = 32
COUNTERS = 9216
SELECTIONS = 256
INPUTS = 16
LIMIT = 4000
TRUST = 6
MOST_BITS = 24
_INIT = 16384
_ONE = 256
_MASK = 0xFFFFFFFF
_LOWER = (
    32768,
    30723,
    28693,
    26695,
    24743,
    22849,
    21025,
    19282,
    17625,
    16062,
    14595,
    13226,
    11955,
    10782,
    9702,
    8714,
    7812,
    6992,
    6249,
    5577,
    4971,
    4427,
    3938,
    3500,
    3108,
    2758,
    2446,
    2168,
    1921,
    1701,
    1506,
    1333,
    1179,
    1042,
    922,
    815,
    720,
    636,
    562,
    497,
    439,
    387,
    342,
    302,
    267,
    236,
    208,
    184,
    162,
    143,
    126,
    111,
    98,
    87,
    77,
    68,
    60,
    53,
    47,
    41,
    36,
    32,
    28,
    25,
    22,
    19,
    17,
    15,
    13,
    12,
    10,
    9,
    8,
    7,
    6,
    6,
    5,
    4,
    4,
    3,
    3,
)
_AT_ALL = 0
_AT_LEFT = _AT_ALL + 1
_AT_UP = _AT_LEFT + 64
_AT_NEAR = _AT_UP + 32
_AT_COLUMN = _AT_NEAR + 64
_AT_ROW = _AT_COLUMN + 96
_AT_BOTH = _AT_ROW + 120
_AT_PLACE = _AT_BOTH + 576
_AT_GROUP = _AT_PLACE + 128
_AT_BESIDE = _AT_GROUP + 192
_AT_SIGN = _AT_BESIDE + 576
_AT_LENGTH = _AT_SIGN + 256
_AT_MANTISSA = _AT_LENGTH + 1600
_AT_REST = _AT_MANTISSA + 4608


def _squash(s: int) -> int:
    size = min(abs(s), TAIL - 1)
    k, f = divmod(size, STEP)
    p = (_LOWER[k] * (STEP - f) + _LOWER[k + 1] * f) // STEP
    return p if s < 0 else 65536 - p


def _stretches() -> List[int]:
    found, s = [], -TAIL
    for i in range(4096):
        while s < TAIL and _squash(s) < 16 * i + 8:
            s += 1
        found.append(s)
    return found


def _toward_zero(a: int, b: int) -> int:
    """Divide as C does."""
    return a // b if a >= 0 else -(-a // b)


class Coder:
    """One stream of matrices, coded or decoded in order.

    Args:
        data: to decode; None codes.
    """

    def __init__(self, data: Optional[bytes] = None) -> None:
        self._decoding = data is not None
        self._source = data or b""
        self._sink = bytearray()
        self._at = 0
        self._overrun = 0
        self._low, self._high, self._value = 0, _MASK, 0
        self._p = [32768] * COUNTERS
        self._n = [0] * COUNTERS
        self._weights = [[_INIT] * INPUTS for _ in range(SELECTIONS)]
        self._age = [0] * SELECTIONS
        self._stretch = _stretches()
        if self._decoding:
            for _ in range(4):
                self._value = (self._value << 8) | self._next()
            self._overrun = 0

    def matrix(
        self,
        symbols: Optional[Sequence[int]],
        rows: int,
        columns: int,
        low: int,
        high: int,
        period: int,
    ) -> List[int]:
        """Code the symbols of a matrix, row by row, or decode so many.

        Args:
            symbols: each from `low` to `high`; None decodes.
            rows: of the matrix.
            columns: of the matrix.
            low: the lowest symbol, at most 0.
            high: the highest, at least 0.
            period: distance of columns that are alike, 0 for none.

        Raises:
            CodedError: the stream is damaged.
        """
        if low > 0 or high < 0 or max(-low, high).bit_length() > MOST_BITS:
            raise CodedError("the levels of a tensor are damaged")
        out = [0] * (rows * columns) if symbols is None else list(symbols)
        nonzeros, lengths, balance = [0] * columns, [0] * columns, [0] * columns
        up, above = [0] * columns, [0] * columns
        self._n = [min(n, TRUST) for n in self._n]
        for r in range(rows):
            base = r * columns
            begun = min(r, 7)
            ones = length_sum = in_group = seen = start = signs = recent = 0
            last = 1
            for c in range(columns):
                if c % 1024 == 0 and self._overrun > 8:
                    raise CodedError("the coded weights end too early")
                at = base + c
                left = out[at - 1] if c > 0 else 0
                second = out[at - 2] if c > 1 else 0
                third = out[at - 3] if c > 2 else 0
                back = out[at - period] if 0 < period <= c else 0
                corner = up[c - 1] if c > 0 else 0
                following = up[c + 1] if c + 1 < columns else 0
                near = of = 0
                if 0 < period <= c - start:
                    start, in_group, seen = c, 0, 0
                for other in (
                    c - 1,
                    c + 1,
                    c - period if period else -1,
                    c + period if period else -1,
                ):
                    if 0 <= other < columns:
                        near += nonzeros[other]
                        of += r
                by_column = self._logit(nonzeros[c], r)
                by_row = self._logit(ones, c)
                beside = self._logit(near, of)
                group = self._logit(in_group, seen)
                column_grade, row_grade = _grade(by_column), _grade(by_row)
                popular = min(bin(recent & 0xFFFF).count("1"), 4)
                place = min(c - start, 63)
                value = 0 if self._decoding else out[at]
                is_one = self._decide(
                    value != 0,
                    begun,
                    8 + row_grade,
                    (
                        _AT_ALL,
                        _AT_LEFT + _capped(left) * 16 + _capped(second) * 4 + _capped(third),
                        _AT_UP + (_capped(up[c]) * 4 + _capped(above[c])) * 2 + (left != 0),
                        _AT_NEAR
                        + (left != 0)
                        + 2 * (up[c] != 0)
                        + 4 * (corner != 0)
                        + 8 * (following != 0)
                        + 16 * (back != 0)
                        + 32 * (above[c] != 0),
                        _AT_COLUMN + column_grade * 4 + min(begun, 3),
                        _AT_ROW + row_grade * 5 + popular,
                        _AT_BOTH + column_grade * 24 + row_grade,
                        _AT_PLACE + place * 2 + (back != 0),
                        _AT_GROUP + _grade(group) * 8 + column_grade // 3,
                        _AT_BESIDE + _grade(beside) * 24 + column_grade,
                    ),
                    (by_column, by_row, beside, group, _ONE),
                )
                recent = (recent << 1) & 0xFFFF
                seen += 1
                if not is_one:
                    out[at] = 0
                    above[c] = up[c]
                    up[c] = 0
                    continue
                if low == 0 or high == 0:
                    sign = int(low == 0)
                else:
                    sign = self._decide(
                        value > 0,
                        40,
                        41 + _around(balance[c]),
                        (
                            _AT_SIGN,
                            _AT_SIGN + 1 + _sign(left) * 9 + _sign(up[c]) * 3 + _sign(back),
                            _AT_SIGN + 28 + _around(balance[c]) * 7 + _around(signs),
                            _AT_SIGN + 77 + place * 2,
                        ),
                        (_ONE,),
                    )
                bound = high if sign else -low
                size = self._magnitude(
                    abs(value),
                    sign,
                    bound,
                    abs(left).bit_length(),
                    abs(up[c]).bit_length(),
                    (2 * lengths[c] + nonzeros[c] // 2) // nonzeros[c] if nonzeros[c] else 0,
                    (2 * length_sum + ones // 2) // ones if ones else 0,
                    last,
                )
                if size > bound:
                    raise CodedError("the coded weights are damaged: a level that isn't there")
                value = size if sign else -size
                out[at] = value
                last = size.bit_length()
                recent |= 1
                ones += 1
                in_group += 1
                length_sum += last
                signs += 1 if sign else -1
                nonzeros[c] += 1
                lengths[c] += last
                balance[c] += 1 if sign else -1
                above[c] = up[c]
                up[c] = value
        if self._overrun > 8:
            raise CodedError("the coded weights end too early")
        return out

    def finish(self) -> bytes:
        """Return the bytes of what was coded; after decoding see that there were enough.

        Raises:
            CodedError: the stream ended before its last symbol.
        """
        if self._decoding:
            if self._overrun > 4:
                raise CodedError("the coded weights end too early")
            return self._source[: self._at]
        for kept in range(5):
            mask = (1 << (32 - 8 * kept)) - 1
            value = (self._low + mask) & ~mask & _MASK
            if self._low <= value <= self._high:
                return bytes(self._sink) + value.to_bytes(4, "big")[:kept]
        raise AssertionError("some number of four bytes lies in the range")

    # One decision.

    def _decide(
        self,
        bit: bool,
        first: int,
        second: int,
        counters: Sequence[int],
        direct: Sequence[int],
    ) -> int:
        p, n, stretch = self._p, self._n, self._stretch
        x = [_toward_zero(stretch[p[i] >> 4] * n[i], n[i] + 1) for i in counters]
        x.extend(direct)
        a_weights, b_weights = self._weights[first], self._weights[second]
        a = b = 0
        for i, value in enumerate(x):
            a += a_weights[i] * value
            b += b_weights[i] * value
        a = max(-(TAIL - 1), min(TAIL - 1, a >> 16))
        b = max(-(TAIL - 1), min(TAIL - 1, b >> 16))
        mixed = max(1, min(65535, _squash((a + b) >> 1)))
        found = self._arithmetic(bit, mixed)
        target = found << 16
        a_step = (target - _squash(a)) * _rate(self._age[first])
        b_step = (target - _squash(b)) * _rate(self._age[second])
        for i, value in enumerate(x):
            a_weights[i] += (value * a_step) >> 24
            b_weights[i] += (value * b_step) >> 24
        self._age[first] = min(self._age[first] + 1, 65535)
        if second != first:
            self._age[second] = min(self._age[second] + 1, 65535)
        for i in counters:
            p[i] += _toward_zero((target - found - p[i]) * 2, 2 * n[i] + 3)
            if n[i] < LIMIT:
                n[i] += 1
        return found

    def _magnitude(
        self,
        size: int,
        sign: int,
        bound: int,
        left: int,
        up: int,
        column: int,
        row: int,
        last: int,
    ) -> int:
        most, length, n = bound.bit_length(), size.bit_length(), 1
        while n < most:
            at = _AT_LENGTH + (n - 1) * 64
            if not self._decide(
                length > n,
                64 + n,
                96 + min(left, 7) + 8 * min(n - 1, 7),
                (
                    at + sign,
                    at + 2 + min(left, 3) * 4 + min(up, 3),
                    at + 18 + min(column, 7) * 2 + sign,
                    at + 34 + min(row, 7) * 2 + sign,
                    at + 50 + min(last, 6) * 2 + sign,
                ),
                (_ONE,),
            ):
                break
            n += 1
        found = 1
        for i in range(n - 2, -1, -1):
            bit = bool((size >> i) & 1)
            if found < 256:
                found = found * 2 + self._decide(
                    bit,
                    160 + min(n, 15),
                    176 + min(found, 31),
                    (
                        _AT_MANTISSA + (found * 9 + min(n, 8)) * 2 + sign,
                        _AT_MANTISSA + found * 18 + sign,
                    ),
                    (_ONE,),
                )
            else:
                found = found * 2 + self._decide(bit, 208, 209, (_AT_REST + n * MOST_BITS + i,), ())
            if found > bound:
                return bound + 1
        return found

    def _arithmetic(self, bit: bool, p: int) -> int:
        span = self._high - self._low
        middle = self._low + (span >> 16) * p + (((span & 0xFFFF) * p) >> 16)
        found = self._value <= middle if self._decoding else bit
        if found:
            self._high = middle
        else:
            self._low = middle + 1
        while (self._low ^ self._high) & 0xFF000000 == 0:
            if self._decoding:
                self._value = ((self._value << 8) | self._next()) & _MASK
            else:
                self._sink.append(self._high >> 24)
            self._low = (self._low << 8) & _MASK
            self._high = ((self._high << 8) & _MASK) | 0xFF
        return int(found)

    def _next(self) -> int:
        if self._at < len(self._source):
            self._at += 1
            return self._source[self._at - 1]
        self._overrun += 1
        return 0

    def _logit(self, ones: int, n: int) -> int:
        return self._stretch[min(((2 * ones + 1) * 4096) // (2 * n + 2), 4095)]


def _rate(age: int) -> int:
    return 150 + 192000 // (64 + age)


def _grade(logit: int) -> int:
    return (logit + TAIL) // 214


def _capped(value: int) -> int:
    return min(abs(value).bit_length(), 3)


def _sign(value: int) -> int:
    return 2 if value > 0 else 0 if value < 0 else 1


def _around(total: int) -> int:
    return max(0, min(6, total + 3))

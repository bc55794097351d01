"""Small pictures that need no script: sparsity masks as PNG, places on a scale in per cent."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from flatsat.reports.model import MaskPicture
    from flatsat.reports.model_survey import ImageAtBits

# Mid blue: reads on white and on near-black, so that one picture serves both themes and print.
_KEPT_RGB = (0x3B, 0x82, 0xE6)


def _png(width: int, height: int, depth: int, kind: int, rows: list[bytes], *extra: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    raw = b"".join(b"\0" + row for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *(chunk(part[:4], part[4:]) for part in extra),
            chunk(b"IDAT", zlib.compress(raw, 9)),
            chunk(b"IEND", b""),
        )
    )


def mask_bits(picture: MaskPicture) -> NDArray[np.bool_]:
    """Return the mask, shape (rows, cols), True where a weight is kept."""
    bits = np.unpackbits(np.frombuffer(picture.packed, np.uint8), count=picture.rows * picture.cols)
    return bits.astype(bool).reshape(picture.rows, picture.cols)


def mask_png(picture: MaskPicture) -> bytes:
    """Return the mask as a PNG of cols x rows pixels: kept weights blue, the others clear."""
    packed = np.packbits(mask_bits(picture), axis=1)
    return _png(
        picture.cols,
        picture.rows,
        1,
        3,
        [row.tobytes() for row in packed],
        b"PLTE" + bytes((0, 0, 0)) + bytes(_KEPT_RGB),
        b"tRNS" + bytes((0, 255)),
    )


def pixel_density(picture: MaskPicture) -> NDArray[np.float64] | None:
    """Return the share of outputs that still see each input pixel, shape `picture.image`."""
    if picture.image is None or picture.image[0] * picture.image[1] != picture.cols:
        return None
    return np.asarray(mask_bits(picture).mean(axis=0).reshape(picture.image), dtype=np.float64)


def density_png(density: NDArray[np.float64]) -> bytes:
    """Return densities as a PNG of one pixel each: the densest is opaque blue, zero is clear."""
    height, width = density.shape
    top = float(density.max()) or 1.0
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = _KEPT_RGB
    pixels[..., 3] = np.rint(255 * density / top)
    return _png(width, height, 8, 6, [row.tobytes() for row in pixels])


def image_png(image: ImageAtBits) -> bytes:
    """Return an image as a PNG of its own pixels, grey or in colour."""
    row = image.width * image.channels
    rows = [image.pixels[i : i + row] for i in range(0, len(image.pixels), row)]
    return _png(image.width, image.height, 8, 0 if image.channels == 1 else 2, rows)


def data_url(png: bytes) -> str:
    """Return a PNG as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def place(value: float, low: float, high: float, *, log: bool = False) -> float:
    """Return where `value` lies between `low` and `high` in per cent, kept inside [0, 100]."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    if high <= low:
        return 50.0
    return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 2)


def log_range(values: Sequence[float], room: float = 0.08) -> tuple[float, float]:
    """Return the ends of a logarithmic scale on which all positive values fit with some room."""
    low, high = math.log(min(values)), math.log(max(values))
    pad = room * (high - low) or room
    return math.exp(low - pad), math.exp(high + pad)


def log_ticks(low: float, high: float) -> list[float]:
    """Return round ratios between `low` and `high` for marks on a logarithmic scale."""
    steps = (0.1, 0.2, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30)
    inside = [s for s in (*steps, 50, 100, 200, 500, 1000) if low <= s <= high]
    while len(inside) > 6:
        # 1 means "as fast": it stays, and the others thin out around it.
        one = inside.index(1) if 1 in inside else 0
        inside = [s for i, s in enumerate(inside) if (i - one) % 2 == 0]
    return inside

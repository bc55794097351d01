"""States as bytes: arrays and JSON in one npz file, nothing that runs when it is read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from flatsat.canonical import canonical_json
from flatsat.errors import DataError

_HEAD = "head"


def pack(head: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return JSON-able `head` and numeric `arrays` as bytes; equal values give equal bytes."""
    buffer = io.BytesIO()
    text = np.frombuffer(canonical_json(head).encode(), dtype=np.uint8)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, values in {_HEAD: text, **dict(sorted(arrays.items()))}.items():
            # A fixed date, so that the bytes say nothing of when.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w") as stream:
                np.lib.format.write_array(stream, np.asarray(values, order="C"), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what `pack` was given.

    Args:
        data: bytes of an archive.
        what: they are, for the error.

    Raises:
        DataError: the bytes are no archive of `pack`, or damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        head = json.loads(arrays.pop(_HEAD).tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{what} is damaged or no state of FlatSat: {error}",
            hint="start the search anew, without --resume",
        ) from error
    if not isinstance(head, dict):
        raise DataError(f"{what} is no state of FlatSat", hint="start the search anew")
    return head, arrays


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state as a JSON-able mapping."""
    return dict(generator.bit_generator.state)


def restore_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator that goes on where `generator_state` was taken."""
    bits = np.random.PCG64()
    bits.state = dict(state)  # type: ignore[assignment]
    return np.random.Generator(bits)

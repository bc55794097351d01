"""Seeds for every purpose from one run seed, without global seeding (decision 10)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_sequence(seed: int, purpose: str) -> np.random.SeedSequence:
    """Return `SeedSequence(seed, spawn_key=(crc32(purpose),))`."""
    import numpy as np

    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()),))


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one purpose of one run."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose)))


def integer_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed, for libraries that take an integer (torch.Generator)."""
    return int(seed_sequence(seed, purpose).generate_state(1, dtype="uint64")[0]) >> 1

"""Energy from counted events: joules per event, whose source is named. Modelled, never measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from flatsat.errors import ConfigError
from flatsat.targets.settings import checked

WORD_BYTES = 8
"""Accesses are charged by 64 bits, as the default's source gives them."""


@dataclass(frozen=True)
class EnergyModel:
    """E = instructions e_i + words e_l1 + line words between the caches e_l2 + DRAM words e_dram.

    A word is 64 bits. Words are the bytes loaded and stored, over 8; between the caches go whole
    lines, for every miss of L1 and for every dirty line that leaves it; likewise for DRAM and L2.

    The default is of a 45 nm process at 0.9 V (M. Horowitz, "Computing's energy problem (and what
    we can do about it)", ISSCC 2014): 70 pJ an instruction with its fetch
    (25 pJ), register file and control; 20 pJ for 64 bits of a cache of 32 KB, 100 pJ of one of
    1 MB, 1.3 to 2.6 nJ of DRAM, of which the lower end is taken: it is the 640 pJ for 32 bits of
    Han et al. (NIPS 2015).

    Attributes:
        name: for people.
        source: where the figures are from.
        instruction_pj: an instruction of any kind.
        l1_pj, l2_pj, dram_pj: 64 bits read or written there.
    """

    name: str = "Horowitz 2014, 45 nm"
    source: str = "M. Horowitz, Computing's energy problem, ISSCC 2014"
    instruction_pj: float = 70.0
    l1_pj: float = 20.0
    l2_pj: float = 100.0
    dram_pj: float = 1300.0

    def energy_nj(
        self, *, instructions: float, access_bytes: float, l2_bytes: float, dram_bytes: float
    ) -> float:
        """Return nanojoules for counts of one inference."""
        picojoules = (
            instructions * self.instruction_pj
            + access_bytes / WORD_BYTES * self.l1_pj
            + l2_bytes / WORD_BYTES * self.l2_pj
            + dram_bytes / WORD_BYTES * self.dram_pj
        )
        return picojoules / 1000.0

    def to_json(self) -> dict[str, object]:
        """Return the table as JSON-able values."""
        return asdict(self)


def model_from_settings(board: str, settings: Mapping[str, object]) -> EnergyModel:
    """Return the model that a table `[board.NAME.energy]` describes.

    Figures that it does not give keep their default; a table that gives any must say by `name`
    and `source` whose they are.

    Raises:
        ConfigError: an unknown key, no number, a negative one, or figures without a source.
    """
    figures = [field.name for field in fields(EnergyModel) if field.name.endswith("_pj")]
    widened = {
        key: float(value)
        if key in figures and isinstance(value, int) and not isinstance(value, bool)
        else value
        for key, value in settings.items()
    }
    types: dict[str, type] = {"name": str, "source": str, **dict.fromkeys(figures, float)}
    given = checked(board, widened, types)
    for key in figures:
        value = given.get(key, 0.0)
        assert isinstance(value, float)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"board {board!r}: energy.{key} must be a number of picojoules >= 0")
    missing = [key for key in ("name", "source") if not given.get(key)]
    if given and missing:
        raise ConfigError(
            f"board {board!r}: energy.{missing[0]} is missing",
            hint="say what the figures are called and where they are from",
        )
    return replace(EnergyModel(), **given)  # type: ignore[arg-type]

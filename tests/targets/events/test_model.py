"""Joules from counts, and the modelled caches against a plain one in Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatsat.targets.events as events
from flatsat.errors import ConfigError
from flatsat.targets.energy import EnergyModel, model_from_settings

COUNTS = st.floats(0, 1e9)
LINE, L1, L2 = 64, (512, 2), (2048, 4)
"""Line; size and ways of each cache: small, so that short traces fill them."""


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_energy_is_the_sum_of_events_times_joules(
    instructions: float, access_bytes: float, l2_bytes: float, dram_bytes: float
) -> None:
    model = EnergyModel(instruction_pj=70, l1_pj=20, l2_pj=100, dram_pj=1300)
    energy_nj = model.energy_nj(
        instructions=instructions,
        access_bytes=access_bytes,
        l2_bytes=l2_bytes,
        dram_bytes=dram_bytes,
    )
    by_hand = 0.07 * instructions + (0.02 * access_bytes + 0.1 * l2_bytes + 1.3 * dram_bytes) / 8
    assert energy_nj == pytest.approx(by_hand)


def test_a_32_bit_access_to_dram_costs_what_han_et_al_charge() -> None:
    nothing = {"instructions": 0.0, "access_bytes": 0.0, "l2_bytes": 0.0}
    assert EnergyModel().energy_nj(**nothing, dram_bytes=4) == pytest.approx(0.640, rel=0.02)


def test_figures_of_ones_own_need_a_name_and_a_source() -> None:
    assert model_from_settings("b", {}) == EnergyModel()
    given_ = {"name": "our SoC", "source": "report 114", "instruction_pj": 35}
    model = model_from_settings("b", given_)
    assert (model.name, model.instruction_pj, model.dram_pj) == ("our SoC", 35.0, 1300.0)
    for wrong, said in (
        ({"instruction_pj": 35.0}, "energy.name"),
        ({"name": "x", "instruction_pj": 35.0}, "energy.source"),
        ({**given_, "instruction_pj": -1.0}, "instruction_pj"),
        ({**given_, "instruction_pj": float("nan")}, "instruction_pj"),
        ({**given_, "instruction_pj": "35"}, "instruction_pj"),
        ({**given_, "dram": 1.0}, "dram"),
    ):
        with pytest.raises(ConfigError, match=said):
            model_from_settings("b", wrong)


def test_without_a_compiler_the_meter_says_what_installs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(events.NoMeter) as caught:
        events.build_plugin(tmp_path / "cache")
    assert "apt-get install gcc" in str(caught.value.hint)


def test_the_plugin_is_compiled_once_and_without_a_warning(tmp_path: Path) -> None:
    first = events.build_plugin(tmp_path)
    made = first.stat().st_mtime_ns
    assert events.build_plugin(tmp_path) == first
    assert first.stat().st_mtime_ns == made
    source = Path(events.__file__).parent / "plugin" / "events.c"
    strict = ["gcc", "-O2", "-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*strict, "-o", str(tmp_path / "strict.so"), str(source)], check=True)


class PlainCache:
    """Least recently used goes first; one ordered dictionary a set, line -> dirty."""

    def __init__(self, size: int, ways: int) -> None:
        self.ways = ways
        self.sets: list[OrderedDict[int, bool]] = [
            OrderedDict() for _ in range(size // (ways * LINE))
        ]

    def use(self, line: int, write: bool) -> tuple[bool, tuple[int, bool] | None]:
        held = self.sets[line % len(self.sets)]
        hit = line in held
        evicted = None
        if not hit and len(held) == self.ways:
            evicted = held.popitem(last=False)
        held[line] = held.get(line, False) or write
        held.move_to_end(line)
        return hit, evicted


def plain_counts(trace: list[tuple[int, int, bool]]) -> tuple[int, int, int, int]:
    l1, l2 = PlainCache(*L1), PlainCache(*L2)
    l1_misses = l1_writebacks = l2_misses = l2_writebacks = 0
    for address, size, write in trace:
        for line in sorted({address // LINE, (address + size - 1) // LINE}):
            hit, out = l1.use(line, write)
            if hit:
                continue
            l1_misses += 1
            if out is not None and out[1]:
                l1_writebacks += 1
                held, older = l2.use(out[0], True)
                l2_writebacks += bool(not held and older is not None and older[1])
            held, older = l2.use(line, False)
            if not held:
                l2_misses += 1
                l2_writebacks += bool(older is not None and older[1])
    return l1_misses, l1_writebacks, l2_misses, l2_writebacks


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("cache")
    source = folder / "probe.c"
    sizes = ", ".join(map(str, (*L1, *L2, LINE)))
    source.write_text(
        '#include "cache.h"\n'
        "static struct memory m;\n"
        f"int make(void) {{ return memory_make(&m, {sizes}); }}\n"
        "void use(uint64_t a, uint64_t n, int w) { memory_access(&m, a, n, w); }\n"
        "void told(uint64_t *o) { o[0] = m.l1_misses; o[1] = m.l1_writebacks;"
        " o[2] = m.l2_misses; o[3] = m.l2_writebacks; }\n"
    )
    include = Path(events.__file__).parent / "plugin"
    library = folder / "probe.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", f"-I{include}", "-o", str(library), str(source)],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))
    loaded.use.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
    return loaded


@given(
    trace=st.lists(
        st.tuples(st.integers(0, 8191), st.sampled_from([1, 4, 8]), st.booleans()), max_size=300
    )
)
def test_the_modelled_caches_do_as_a_plain_model_does(
    compiled: ctypes.CDLL, trace: list[tuple[int, int, bool]]
) -> None:
    assert compiled.make()
    for address, size, write in trace:
        compiled.use(address, size, write)
    counts = (ctypes.c_uint64 * 4)()
    compiled.told(counts)
    assert tuple(counts) == plain_counts(trace)

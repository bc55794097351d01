"""A mission file with a fault gets one line: file, line, what to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatsat.errors import ConfigError
from flatsat.harness.flight.requirements import convert, load_mission

EXAMPLE = Path(__file__).parents[3] / "examples" / "mission.toml"


def test_the_example_loads() -> None:
    mission = load_mission(EXAMPLE)
    assert mission.mission.phase == "cdr"
    assert next(r.id for r in mission.requirement) == "TSK-01"


@pytest.mark.parametrize(
    ("value", "unit", "quantity", "base"),
    [
        (5, "ms", "latency", 5e6),
        (1.8, "s", "latency", 1.8e9),
        (5, "MB", "storage", 5e6),
        (256, "MiB", "memory", 256 * 2**20),
        (85, "percent", "accuracy", 0.85),
        (2, "mJ", "energy", 2e-3),
    ],
)
def test_units(value: float, unit: str, quantity: str, base: float) -> None:
    assert convert(value, unit, quantity, "X") == pytest.approx(base)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('unit = "ms"', 'unit = "MB"', ["TIM-01", "MB", "latency"]),
        ('unit = "ms"', 'unit = "fortnigth"', ["TIM-01", "fortnigth", "unknown"]),
        ('statistic = "p99"', 'statistic = "p42"', ["TIM-01", "p42", "p99"]),
        ('quantity = "latency"', 'quantity = "latencey"', ["latencey"]),
        ("min_repeats = 6", "min_repeat = 6", ["min_repeat", "min_repeats"]),
        ('id = "TIM-01"', 'id = "TSK-01"', ["TSK-01", "twice"]),
        ("shall end", "should end", ["TIM-01", "shall"]),
        ('phase = "cdr"', 'phase = "cdx"', ["cdx"]),
    ],
)
def test_faults_are_named(tmp_path: Path, before: str, after: str, words: list[str]) -> None:
    file = tmp_path / "mission.toml"
    file.write_text(EXAMPLE.read_text().replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        load_mission(file)
    text = str(caught.value)
    assert "\n" not in text
    assert "mission.toml:" in text
    for word in words:
        assert word in text

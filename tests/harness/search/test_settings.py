"""The file of a search: what it may hold, and where its faults are."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatsat.errors import ConfigError
from flatsat.harness.search.settings import load_search

GOOD = """schema = 1
[search]
name = "amc"
workload = "mnist-mini/lenet5"
[search.budget]
quantity = "macs"
ratio = 0.5
"""
EXAMPLES = Path(__file__).parents[3] / "examples"


def _load(tmp_path: Path, text: str):
    path = tmp_path / "search.toml"
    path.write_text(text)
    return load_search(path).search


@pytest.mark.parametrize("name", ["amc.toml", "amc-latency.toml"])
def test_the_examples_can_be_read(name: str) -> None:
    section = load_search(EXAMPLES / name).search
    assert section.strategies == ("amc", "uniform", "random")
    assert section.warmup_episodes < section.episodes


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    section = _load(tmp_path, GOOD)
    assert (section.episodes, section.warmup_episodes) == (400, 100)
    assert (section.space.lower, section.space.round_to) == (0.2, 1)
    assert (section.estimate.calibration_batches, section.estimate.points) == (60, 10)
    assert section.reward.kind == "resource-constrained"


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (('"macs"', '"watts"'), 6, "latency"),
        (("ratio = 0.5", "ratio = 0.0"), 7, "ratio"),
        (("ratio = 0.5", "ratio = 1.5"), 7, "ratio"),
        (("ratio = 0.5", "raito = 0.5"), 7, "ratio"),
        (("ratio = 0.5", "ratio = 0.5\nlimit = 5.0"), 5, "exclude each other"),
        (("ratio = 0.5\n", ""), 2, "needs a ratio or a limit"),
        (('name = "amc"', 'name = "amc"\nstrategies = ["amd"]'), 4, "amc"),
        (('name = "amc"', 'name = "amc"\nstrategies = []'), 4, "at least one"),
        (('name = "amc"', 'name = "amc"\nseeds = [1, 1]'), 4, "twice"),
        (('name = "amc"', 'name = "amc"\nepisodes = 50'), 2, "learn in"),
        (("mnist-mini/lenet5", "mnist-mini/lenet6"), 4, "lenet5"),
        (("mnist-mini/lenet5", "mnist-minni/lenet5"), 4, "mnist-mini"),
        (('"macs"', '"latency"\nboard = ""'), 5, "needs a board"),
    ],
)
def test_a_fault_names_its_line_and_the_way_out(
    tmp_path: Path, change: tuple[str, str], line: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        _load(tmp_path, GOOD.replace(*change))
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_an_accuracy_guaranteed_search_needs_no_budget(tmp_path: Path) -> None:
    text = GOOD.replace("ratio = 0.5\n", "") + '[search.reward]\nkind = "accuracy-guaranteed"\n'
    section = _load(tmp_path, text)
    assert section.budget.ratio is None
    assert section.budget.limit is None

"""The strategies by name: the one place to register another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.harness.search.seams import Reward, Strategy
    from flatsat.harness.search.settings import SearchSection
    from flatsat.harness.search.wall import Wall


def make_strategy(
    name: str, section: SearchSection, wall: Wall, reward: Reward, seed: int
) -> Strategy:
    """Return a new strategy as a search's file sets it; `name` is one that the file may hold."""
    if name == "amc":
        from flatsat.harness.search.amc import AmcSettings, AmcStrategy, decay_over

        decay = section.noise_decay or decay_over(section.episodes - section.warmup_episodes)
        settings = AmcSettings(warmup=section.warmup_episodes, noise_decay=decay)
        return AmcStrategy(wall, reward, settings, seed)
    from flatsat.harness.search.baselines import RandomStrategy, UniformStrategy

    if name == "random":
        return RandomStrategy(wall, reward, seed)
    return UniformStrategy(wall, reward)


def seeds_of(name: str, section: SearchSection) -> tuple[int, ...]:
    """Return the seeds that a strategy runs with: "uniform" draws nothing and runs once."""
    return section.seeds[:1] if name == "uniform" else section.seeds

"""Episodes a second of the AMC search, with 60 and with 6 calibration batches; where time goes.

One episode is a policy proposed, pruned with reconstruction, looked at on the held-out images, and
learnt from. The two arms differ in nothing but the batches, run in an order that is drawn, and
start anew each round: network, Gram matrices, agent. Nothing is measured on a board here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import results
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.graph import layers
from flatsat.datasets.fit import evaluate
from flatsat.datasets.workload import parse_ref
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.domain import Graph
from flatsat.harness.search.estimate import NoFinetuneEstimator, held_out, pruner_of
from flatsat.harness.search.rewards import make_reward
from flatsat.harness.search.seams import Fidelity
from flatsat.harness.search.settings import BudgetTable, EstimateTable, SearchSection
from flatsat.harness.search.spaces import ChannelSpace
from flatsat.harness.search.strategies import make_strategy
from flatsat.harness.search.wall import Wall
from flatsat.progress import NoProgress
from flatsat.reports.stats import mean_log_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = (60, 6)
EPISODES = {"mnist-mini/lenet5": 200, "mnist-mini/resnet20": 40}
BUSY_SHARE = 0.95
"""A search that got less of a core than this is refused."""
PARTS = ("propose", "prune", "evaluate", "learn")
P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Adds up wall time by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[P, R]) -> Callable[P, R]:
        """Return `call` with its time added to `name`."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="*", default=list(EPISODES))
    parser.add_argument("--episodes", type=int, help="in each round, instead of the defaults")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--busy", action="store_true", help="take a busy machine; says so")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    torch.set_num_threads(1)
    rows, data, refused = [], [], 0
    for ref in arguments.workloads:
        episodes = arguments.episodes or EPISODES.get(ref, 40)
        search(ref, BATCHES[-1], 4)  # Trains the network where need be, and warms torch.
        found: dict[int, list[dict[str, float]]] = {batches: [] for batches in BATCHES}
        draw = np.random.default_rng(0)
        while len(found[BATCHES[0]]) < arguments.rounds:
            round_ = {int(b): search(ref, int(b), episodes) for b in draw.permutation(BATCHES)}
            if max(one["busy"] for one in round_.values()) and not arguments.busy:
                refused += 1
                if refused > max(3, arguments.rounds):
                    sys.exit("the search got less than 95 % of a core: no verdict")
                continue
            for batches, one in round_.items():
                found[batches].append(one)
                print(ref, batches, {k: round(v, 3) for k, v in one.items()}, file=sys.stderr)
        rows += [row(ref, batches, episodes, found) for batches in BATCHES]
        data.append({"workload": ref, "rounds": {str(b): found[b] for b in BATCHES}})
    notes = [
        "Gram matrices are summed once, before the first episode, and serve all of them; that is"
        " the set-up. Equal policies are judged once.",
        f"Half of the episodes are warm-up, in which the agent does not learn. {refused} rounds"
        " were refused because the search got less than 95 % of a core.",
    ]
    if arguments.busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    results.write(
        "episodes",
        "Episodes a second of the AMC search",
        f"{arguments.rounds} rounds an arm, interleaved, one torch thread; mean over rounds.",
        (
            "workload",
            "calibration batches",
            "episodes a round",
            "set-up, s",
            "episodes a second",
            "times 60 batches (95 %)",
            "with set-up, over 400 episodes",
            *(f"{part}, ms" for part in PARTS),
            "distinct policies, %",
            "best accuracy, %",
        ),
        rows,
        notes=notes,
        data=data,
    )


def row(
    ref: str, batches: int, episodes: int, found: dict[int, list[dict[str, float]]]
) -> tuple[object, ...]:
    mine = found[batches]
    mean = {name: float(np.mean([one[name] for one in mine])) for name in mine[0]}
    rate = episodes / mean["episodes_s"]
    ratio = ""
    if batches != BATCHES[0]:
        dense = [1 / one["episodes_s"] for one in found[BATCHES[0]]]
        interval = mean_log_ratio([1 / one["episodes_s"] for one in mine], dense)
        assert interval is not None
        ratio = f"{interval.value:.3f}"
        if interval.low is not None and interval.high is not None:
            ratio += f" ({interval.low:.3f} to {interval.high:.3f})"
    return (
        ref,
        batches,
        episodes,
        f"{mean['set_up_s']:.2f}",
        f"{rate:.1f}",
        ratio,
        f"{400 / (400 / rate + mean['set_up_s']):.1f}",
        *(f"{1e3 * mean[part] / episodes:.2f}" for part in PARTS),
        f"{100 * mean['distinct'] / episodes:.0f}",
        f"{100 * mean['best']:.1f}",
    )


def search(ref: str, batches: int, episodes: int) -> dict[str, float]:
    """Run one search of its own; return seconds by part, and what it came to."""
    workload, network = parse_ref(ref)
    cache = default_cache_dir()
    section = SearchSection(
        name="episodes",
        workload=ref,
        strategies=("amc",),
        episodes=episodes,
        warmup_episodes=episodes // 2,
        budget=BudgetTable(ratio=0.5, board=""),
        estimate=EstimateTable(calibration_batches=batches),
    )
    cpu, begin = time.process_time(), time.perf_counter()
    pruner = pruner_of(section, workload, network, cache, NoProgress())
    set_up = time.perf_counter() - begin
    found = layers(pruner.network.module, workload.image_shape)
    space = ChannelSpace(ref, lower=section.space.lower, batches=batches)
    domain = space.domain(Graph(found, pruner.groups, workload.image_shape))
    cost = MacsModel(domain)
    wall = Wall(domain, cost, 0.5 * total_of(cost, domain.full))
    strategy = make_strategy("amc", section, wall, make_reward(section.reward.kind), 0)
    split = held_out(workload, cache)
    watch = Stopwatch()
    estimator = NoFinetuneEstimator(
        prune=watch.timed("prune", lambda proposal: pruner.prune(proposal.ratios)),
        evaluate=watch.timed("evaluate", lambda module: evaluate(module, split)),
        images=len(split),
        cost=cost,
    )
    ask, tell = watch.timed("propose", strategy.ask), watch.timed("learn", strategy.tell)
    start, best = time.perf_counter(), 0.0
    for _ in range(episodes):
        proposal = ask()
        estimate = estimator.estimate(proposal, Fidelity.NO_FINETUNE)
        best = max(best, tell(proposal, estimate))
    end = time.perf_counter()
    share = (time.process_time() - cpu) / (end - begin)
    return {
        "set_up_s": set_up,
        "episodes_s": end - start,
        **{part: watch.seconds[part] for part in PARTS},
        "distinct": float(estimator.evaluations),
        "best": best,
        "busy": float(share < BUSY_SHARE),
    }


if __name__ == "__main__":
    main()

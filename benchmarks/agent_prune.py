"""Row 5: filters pruned by agents over the drop bound b, beside filters by L1 norm and narrow nets.

Every network is an ordinary candidate of an ordinary recipe: the agents' (Huang et al. 2018); the
filters of largest L1 norm (Li et al. 2017) at the same widths and at one ratio for all layers with
equally many parameters, both fine-tuned as long as the agents' network was retrained; and a dense
narrow network trained from scratch at equal MACs. Latency and accuracy are ordinary jobs.

Resumable: candidates are kept in lab/agent_prune, measured figures in lab/benchmarks.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results
import torch
from recorded import median_us, runnable
from rich.console import Console

from flatsat.compressors.agents import AgentParams
from flatsat.compressors.channels import ChannelGroup, kept_count, shrunk
from flatsat.compressors.graph import channel_groups, layers
from flatsat.compressors.recipe import from_mapping
from flatsat.datasets.nets import build
from flatsat.datasets.workload import workload
from flatsat.harness.console import PlainProgress
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, build_all, end_run, measure_candidates
from flatsat.jobspec import JobKind, MeasurePlan
from flatsat.outcome import Measured
from flatsat.reports.compare import compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flatsat.compressors.candidate import Candidate
    from flatsat.compressors.layers import LayerInfo
    from flatsat.reports.rows import OutcomeRow

BOUNDS = (0.5, 1.0, 2.0, 4.0)
HOST = "host"
BUSY_SHARE = 0.1
BUDGETS: dict[str, dict[str, Any]] = {
    "lenet5": {"iterations": 50},
    "resnet20": {"iterations": 15, "tune_epochs": 0.0, "images": 200, "epochs": 1.0},
}
"""Parameters of the agents that differ from the step's own, for time."""
WAYS = {
    "same widths": "L1 norm at the same widths",
    "one ratio": "L1 norm at one ratio",
    "narrow": "the dense narrow network at equal MACs",
}
"""What stands beside the agents' networks."""
ONE_RATIO = [i / 200 for i in range(1, 201)]


@dataclass(frozen=True)
class Case:
    """What one seed and bound gave."""

    seed: int
    b: float
    agents: Candidate
    others: Mapping[str, Candidate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="+", default=["lenet5"])
    parser.add_argument("--bounds", nargs="+", type=float, default=list(BOUNDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-s", type=float, default=0.2, help="counted in each process")
    parser.add_argument("--busy", action="store_true", help="take a busy machine; says so")
    parser.add_argument("--build-only", action="store_true", help="compress, measure later")
    arguments = parser.parse_args()
    if "same widths" not in arguments.ways:
        parser.error("--ways must hold 'same widths': the brackets of the table")
    lab = Lab(Path("lab/agent_prune"))
    lab.prepare()
    checkpoint = results.Checkpoint(Path("lab/benchmarks/agent_prune.json"))
    progress = PlainProgress(Console(stderr=True))
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, Any]] = []
    for network in arguments.networks:
        dense, cases = compressed(lab, network, arguments, progress)
        if arguments.build_only:
            continue
        every = list(dense.values()) + [
            each for case in cases for each in (case.agents, *case.others.values())
        ]
        timed = list(dense.values()) + [case.agents for case in cases]
        key = {
            "timed": sorted({each.candidate_id for each in timed}),
            "judged": sorted({each.candidate_id for each in every}),
            "rounds": arguments.rounds,
            "min_s": arguments.min_s,
        }
        value = checkpoint.get(key)
        if value is None:
            value = measured(lab, every, timed, dense, cases, arguments, progress)
            checkpoint.put(key, value)
        assert isinstance(value, dict)
        if value["busy"] > BUSY_SHARE and not arguments.busy:
            sys.exit(f"more processes runnable than cores at {value['busy']:.0%} of jobs")
        told = [_told(case, dense[case.seed], value) for case in cases]
        rows += table(network, dense, told, value, arguments.bounds)
        data.append({"network": network, "cases": told, "measured": value})
    if arguments.build_only:
        return
    images = len(workload(arguments.workload).splits().open_test())
    results.write(
        "agent_prune",
        f"Filters pruned by agents on {arguments.workload}, over the drop bound b",
        f"Accuracy on the {images} test images in %, through accuracy jobs on the host, mean and"
        f" standard deviation over {arguments.seeds} seed(s). In brackets: filters of largest L1"
        " norm at the same widths, fine-tuned for as many epochs as the agents' network was"
        " retrained. Latency: dense / pruned, median of one thread on the host, onnxruntime,"
        f" {arguments.rounds} interleaved rounds of fresh processes, geometric mean over seeds"
        " (least to most); above 1 the pruned network is faster.",
        (
            *("network", "b, points", "filters left, %", "parameters, times fewer"),
            *("MACs, times fewer", "agents (L1 norm, same widths), %", "L1 norm, one ratio, %"),
            *("dense narrow, equal MACs, %", "agents - L1 norm at the same widths, points"),
            *("drop on validation, points, worst", "faster, measured", "layers held back"),
            "compression: CPU s, training steps, forward passes",
        ),
        rows,
        notes=notes(data, arguments),
        data=data,
    )


def compressed(
    lab: Lab, network: str, arguments: argparse.Namespace, progress: PlainProgress
) -> tuple[dict[int, Candidate], list[Case]]:
    """Build all candidates of one network; return the dense ones by seed, and the cases."""
    seeds = range(arguments.seeds)
    ref = f"{arguments.workload}/{network}"

    def made(wanted: Mapping[tuple[Any, ...], list[dict[str, Any]]]) -> dict[Any, Candidate]:
        """Build one candidate a key; its last part is the seed."""
        recipes = [
            from_mapping(
                " ".join(str(part) for part in key),
                {"workload": ref, "seeds": [key[-1]], "step": steps, "lower": [{"to": "onnx"}]},
            )
            for key, steps in wanted.items()
        ]
        built, unbuilt = build_all(lab, recipes, progress, workers=1)
        if unbuilt:
            sys.exit("; ".join(f"{name}: {why}" for name, why in unbuilt.items()))
        return dict(zip(wanted, built, strict=True))

    dense = {key[-1]: c for key, c in made({("dense", s): [] for s in seeds}).items()}
    tried = BUDGETS.get(network, {})
    agents = made(
        {
            ("agents", b, s): [{"use": "agent-prune", "b": b, **tried}]
            for s in seeds
            for b in arguments.bounds
        }
    )
    task = workload(arguments.workload)
    module = build(
        network,
        classes=task.classes,
        input_shape=task.image_shape,
        generator=torch.Generator().manual_seed(0),
    )
    groups = channel_groups(module, task.image_shape)
    infos = layers(module, task.image_shape)
    params = AgentParams(**tried)
    plain: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for (_, b, seed), candidate in agents.items():
        entry = _entry(candidate)
        tune = _fine_tune(entry, params)
        widths = {layer["name"]: layer["kept"] / layer["total"] for layer in entry["layers"]}
        one = _one_ratio(infos, groups, entry)
        plain["same widths", b, seed] = [{"use": "l1-filter-prune", "keep": widths}, *tune]
        plain["one ratio", b, seed] = [{"use": "l1-filter-prune", "keep": one}, *tune]
        share = (candidate.macs or 0) / (dense[seed].macs or 1)
        plain["narrow", b, seed] = [] if share == 1 else [{"use": "narrow", "macs_ratio": share}]
    others = made({key: steps for key, steps in plain.items() if key[0] in arguments.ways})
    cases = [
        Case(seed, b, candidate, {way: c for (way, *of), c in others.items() if of == [b, seed]})
        for (_, b, seed), candidate in agents.items()
    ]
    return dense, cases


def _entry(candidate: Candidate) -> dict[str, Any]:
    (entry,) = [dict(told) for told in candidate.history if told["step"] == "agent-prune"]
    return entry


def _fine_tune(entry: Mapping[str, Any], params: AgentParams) -> list[dict[str, Any]]:
    """Return the fine-tuning that equals the retraining which the agents' network carries."""
    cut = sum(layer["kept"] < layer["total"] for layer in entry["layers"])
    if not cut:
        return []
    same = {"lr": params.lr, "batch": params.batch, "weight_decay": params.weight_decay}
    return [{"use": "fine-tune", "epochs": cut * params.epochs, **same}]


def _one_ratio(
    infos: Sequence[LayerInfo], groups: Sequence[ChannelGroup], entry: Mapping[str, Any]
) -> dict[str, float]:
    """Return one preserve ratio for all of the layers whose parameters are nearest the agents'."""
    named = {layer["name"]: layer for layer in entry["layers"]}
    mine = [group for group in groups if group.name in named]

    def parameters(counts: Mapping[str, int]) -> int:
        return sum(info.params for info in shrunk(infos, mine, counts))

    goal = parameters({name: layer["kept"] for name, layer in named.items()})
    ratio = min(
        ONE_RATIO,
        key=lambda r: abs(parameters({g.name: kept_count(g, r) for g in mine}) - goal),
    )
    return dict.fromkeys(named, ratio)


def measured(
    lab: Lab,
    every: Sequence[Candidate],
    timed: Sequence[Candidate],
    dense: Mapping[int, Candidate],
    cases: Sequence[Case],
    arguments: argparse.Namespace,
    progress: PlainProgress,
) -> dict[str, Any]:
    """Measure accuracy of all and latency of those to be timed, as jobs on the host."""
    store = lab.store()
    run_id = begin_run(lab, store, kind="measure", config={"benchmark": "agent_prune"}, seed=0)
    found: dict[JobKind, list[OutcomeRow]] = {}
    for kind, candidates in ((JobKind.ACCURACY, every), (JobKind.LATENCY, timed)):
        settings = Settings(
            kinds=(kind,),
            plan=MeasurePlan(processes=1, min_s=arguments.min_s),
            rounds=arguments.rounds,
            comparison="agent_prune",
        )
        unique = list({each.candidate_id: each for each in candidates}.values())
        found[kind] = measure_candidates(
            lab, run_id, unique, boards=[HOST], settings=settings, progress=progress
        )
        for row in found[kind]:
            assert isinstance(row.outcome, Measured), row.outcome
    end_run(lab, store, run_id, "done")
    accuracy = {}
    for each in every:
        (row,) = _rows(found[JobKind.ACCURACY], each)
        assert row.accuracy is not None
        accuracy[each.candidate_id] = row.accuracy.value
    faster = {}
    for case in cases:
        pair = [_rows(found[JobKind.LATENCY], c) for c in (dense[case.seed], case.agents)]
        ratio = compare(pair[0], pair[1], statistic="p50").ratio
        faster[case.agents.candidate_id] = None if ratio is None else ratio.value
    medians = {each.candidate_id: median_us(_rows(found[JobKind.LATENCY], each)) for each in timed}
    busy = [runnable(row) > (os.cpu_count() or 1) for row in found[JobKind.LATENCY]]
    return {
        "accuracy": accuracy,
        "faster": faster,
        "latency_us": medians,
        "busy": float(np.mean(busy)),
    }


def _rows(rows: Sequence[OutcomeRow], candidate: Candidate) -> list[OutcomeRow]:
    return [row for row in rows if row.job.artifact == candidate.artifacts[0].sha256]


def _told(case: Case, dense: Candidate, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw figures of one seed and bound."""
    entry = _entry(case.agents)
    layers_ = entry["layers"]
    return {
        "seed": case.seed,
        "b": case.b,
        "layers": layers_,
        "left": entry["left"],
        "params": case.agents.params,
        "fewer": dense.params / case.agents.params,
        "fewer_macs": (dense.macs or 0) / (case.agents.macs or 1),
        "filters": sum(x["kept"] for x in layers_) / sum(x["total"] for x in layers_),
        "drop_validation": 100 * (entry["p_ref"] - entry["accuracy"]),
        "dense": value["accuracy"][dense.candidate_id],
        "agents": value["accuracy"][case.agents.candidate_id],
        "others": {way: value["accuracy"][c.candidate_id] for way, c in case.others.items()},
        "other_params": {way: c.params for way, c in case.others.items()},
        "faster": value["faster"][case.agents.candidate_id],
        "cost": dict(case.agents.cost),
    }


def table(
    network: str,
    dense: Mapping[int, Candidate],
    told: Sequence[Mapping[str, Any]],
    value: Mapping[str, Any],
    bounds: Sequence[float],
) -> list[tuple[object, ...]]:
    """Return the rows of one network: the dense one, then one a bound."""
    ids = [each.candidate_id for each in dense.values()]
    start = [value["accuracy"][i] for i in ids]
    us = float(np.median([value["latency_us"][i] for i in ids]))
    rows: list[tuple[object, ...]] = [
        (
            *(network, "dense", "100", "1.00", "1.00", _shown(start), "", "", "", ""),
            *(f"1.00 ({us:.0f} us)", "", ""),
        )
    ]
    for b in bounds:
        mine = [one for one in told if one["b"] == b]
        faster = np.array([one["faster"] or np.nan for one in mine])
        beside = {w: _shown([x["others"][w] for x in mine]) for w in mine[0]["others"]}
        gain = [100 * (x["agents"] - x["others"]["same widths"]) for x in mine]
        held = [x["outcome"] for one in mine for x in one["layers"] if x["outcome"] != "pruned"]
        cost = [one["cost"] for one in mine]
        names = {n: held.count(n) for n in dict.fromkeys(held)}
        rows.append(
            (
                network,
                f"{b:g}",
                _plain([100 * one["filters"] for one in mine], 0),
                _plain([one["fewer"] for one in mine], 2),
                _plain([one["fewer_macs"] for one in mine], 2),
                f"{_shown([one['agents'] for one in mine])} ({beside['same widths']})",
                beside.get("one ratio", "not run"),
                beside.get("narrow", "not run"),
                _plain(gain, 2, "+"),
                f"{max(one['drop_validation'] for one in mine):+.2f}",
                f"{np.exp(np.log(faster).mean()):.2f} ({faster.min():.2f} to {faster.max():.2f})",
                ", ".join(f"{count} {name}" for name, count in names.items()) or "none",
                ", ".join(
                    f"{np.mean([c[key] for c in cost]):,.0f}"
                    for key in ("cpu_s", "train_steps", "forward_passes")
                ),
            )
        )
    return rows


def notes(data: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> list[str]:
    """Return what a reader must know beside the table."""
    told = [one for each in data for one in each["cases"]]
    gains = {
        way: np.array([100 * (one["agents"] - one["others"][way]) for one in told])
        for way in arguments.ways
    }
    over = sum(100 * (one["dense"] - one["agents"]) > one["b"] for one in told)
    lines = [
        "b is held on the validation images after each retraining, against the dense network;"
        " the test images see no choice. Drop on validation: the worst seed; negative is a gain."
        f" On the test images {over} of {len(told)} networks lost more than b; one test image is"
        " 0.1 points, and the standard error of one accuracy near 97 % is 0.5 points.",
        *(
            f"Agents against {WAYS[way]}, over all {len(told)} networks: {values.mean():+.2f}"
            f" points ± {values.std(ddof=1) / np.sqrt(len(values)):.2f} (standard error; networks"
            " of one seed share their dense network)."
            for way, values in gains.items()
            if len(values) > 1
        ),
        "Layers held back: undone, weakened (dropped filters came back to hold b), or whole (the"
        " agent dropped none). Compression is that of the agents, means; the reference's training"
        " isn't in it. Convolutions have agents, fully connected layers have none.",
        "The paper prunes VGG-16 on CIFAR-10, which isn't to be had here: its figures stand"
        " neither confirmed nor refuted.",
    ]
    if "one ratio" in arguments.ways:
        off = max(abs(one["other_params"]["one ratio"] / one["params"] - 1) for one in told)
        lines.append(
            f"One ratio: the nearest in parameters, off by at most {off:.1%}: in such a network the"
            " agents' division over the layers is missing, too."
        )
    for each in data:
        budget = ", ".join(f"{k} = {v}" for k, v in BUDGETS.get(each["network"], {}).items())
        if budget:
            lines.append(f"{each['network']}: agents with {budget}, for time.")
        busy = each["measured"]["busy"]
        lines.append(
            f"{each['network']}: {busy:.0%} of the latency jobs began with more processes runnable"
            " than there are cores."
        )
    if arguments.busy:
        lines.append("MADE ON A BUSY MACHINE (--busy): its latency is no evidence.")
    return lines


def _shown(accuracy: Sequence[float]) -> str:
    """Return mean and standard deviation in %."""
    return _plain([100 * value for value in accuracy], 2)


def _plain(values: Sequence[float], digits: int, sign: str = "") -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.{digits}f}{spread}"


if __name__ == "__main__":
    main()

"""A run as one flat table: a row an outcome, units and kinds in the columns' names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from flatsat.outcome import Failed, Inconclusive, Measured
from flatsat.reports import stats
from flatsat.reports.context import context, counted

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.reports.rows import BoardRow, CandidateRow, OutcomeRow, Store

Value: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: ends in the unit where it has one.
        type: of its values; each may be missing.
        unit: "ns", "byte", "J", "share" or "".
        meaning: in a few words; names the column that tells the kind, where there is one.
    """

    name: str
    type: Literal["string", "int", "float", "bool"]
    unit: str
    meaning: str


COLUMNS = tuple(
    Column(*column)
    for column in (
        ("run_id", "string", "", "run"),
        ("job_id", "string", "", "job; missing for a candidate that was not measured"),
        ("job_kind", "string", "", "latency, accuracy, ..."),
        ("round", "int", "", "jobs of one round ran interleaved"),
        ("position", "int", "", "place in the board's order"),
        ("comparison", "string", "", "group that was interleaved"),
        ("reused_from", "string", "", "job that really ran, where an earlier one was reused"),
        ("candidate_id", "string", "", "candidate; of several that share the file, the first"),
        ("candidate", "string", "", "its name"),
        ("role", "string", "", "reference, equal-macs, compressed or imported"),
        ("workload", "string", "", "data set and network"),
        ("seed", "int", "", "seed that the candidate was made with"),
        ("recipe_id", "string", "", "hash of the recipe's intent"),
        ("params", "int", "", "parameters of the network"),
        ("nonzeros", "int", "", "parameters that aren't zero"),
        ("macs", "int", "", "multiply-accumulates of one inference"),
        ("artifact", "string", "", "SHA-256 of the model file"),
        ("format", "string", "", "of the model file"),
        ("precision", "string", "", "float, int8, ..."),
        ("size_bytes", "int", "byte", "of the model file"),
        ("board", "string", "", "name of the board"),
        ("board_id", "string", "", "identity of the board"),
        ("board_kind", "string", "", "kind of board"),
        (
            "emulator_clock",
            "string",
            "",
            "of an emulated board: virtual, or wall: a smoke test, not a measurement of a board",
        ),
        ("runtime", "string", "", "what executed the model"),
        ("runtime_version", "string", "", "its version, as the board told"),
        ("threads", "int", "", "threads of the runtime"),
        ("batch", "int", "", "length of the batch axis"),
        ("status", "string", "", "measured, failed, inconclusive or unmeasured"),
        ("fault_owner", "string", "", "whose fault a failure is"),
        ("fault_code", "string", "", "short name of the fault"),
        ("message", "string", "", "what happened, where nothing was measured"),
        ("started_utc", "string", "", "start of the job"),
        ("wall_s", "float", "s", "duration of the whole job on the harness's clock"),
        ("processes", "int", "", "fresh processes that counted"),
        ("latency_clock", "string", "", "wall or virtual: which clock the durations in ns are of"),
        ("latency_n", "int", "", "counted inferences"),
        ("latency_min_ns", "float", "ns", "least latency; see latency_clock"),
        ("latency_mean_ns", "float", "ns", "mean latency; see latency_clock"),
        ("latency_p10_ns", "float", "ns", "from 64 inferences on; see latency_clock"),
        ("latency_p50_ns", "float", "ns", "median latency; see latency_clock"),
        ("latency_p90_ns", "float", "ns", "from 64 inferences on; see latency_clock"),
        ("latency_p99_ns", "float", "ns", "from 662 inferences on; see latency_clock"),
        ("load_ns", "float", "ns", "median time to load the model; see latency_clock"),
        ("memory_method", "string", "", "how memory_peak_bytes was had"),
        ("memory_peak_bytes", "int", "byte", "most resident memory of a process"),
        ("energy_class", "string", "", "metered, estimated or modelled"),
        ("energy_mean_j", "float", "J", "mean energy; see energy_class"),
        ("energy_nj_modelled_p50", "float", "nJ", "median of counted events x joules per event"),
        ("instructions_p50", "float", "", "median count in one inference, user code only"),
        ("load_bytes_p50", "float", "byte", "median count loaded in one inference"),
        ("store_bytes_p50", "float", "byte", "median count stored in one inference"),
        ("cache_misses_p50", "float", "", "median count of a small modelled cache"),
        ("dram_bytes_p50", "float", "byte", "median count moved by those misses"),
        ("agreement_class", "string", "", "policy that the goldens were compared by"),
        ("agreement_max_abs", "float", "", "largest difference, in units of the output"),
        ("agreement_max_rel", "float", "share", "largest difference / largest golden"),
        ("agreement_top1", "float", "share", "goldens with the same answer"),
        ("agreement_ok", "bool", "", "within the policy"),
        ("accuracy_metric", "string", "", "what accuracy means"),
        ("accuracy", "float", "share", "on the board; see accuracy_metric"),
        ("accuracy_low", "float", "share", "lower end of the 95 % Wilson interval"),
        ("accuracy_high", "float", "share", "upper end of the 95 % Wilson interval"),
        ("accuracy_n", "int", "", "images"),
        ("split_sha", "string", "", "SHA-256 of the images and labels"),
    )
)


_COUNTED = ("instructions", "load_bytes", "store_bytes", "cache_misses", "dram_bytes")


def flat_rows(store: Store, run_id: str) -> list[dict[str, Value]]:
    """Return one mapping an outcome, in the order of the run, with every column of `COLUMNS`.

    Candidates of the run that no outcome belongs to follow, with status "unmeasured".

    Raises:
        DataError: the record has no such run.
    """
    store.run(run_id)
    boards = {board.board_id: board for board in store.boards(run_id)}
    candidates = store.candidates(run_id)
    owner: dict[str, tuple[CandidateRow, Artifact]] = {}
    for candidate in candidates:
        for artifact in store.artifacts(candidate.candidate_id):
            owner.setdefault(artifact.sha256, (candidate, artifact))
    outcomes = store.outcomes(run_id)
    found = [_row(row, owner.get(row.job.artifact), boards) for row in outcomes]
    seen = {values.get("candidate_id") for values in found}
    measured = {row.job.artifact for row in outcomes}
    for candidate in candidates:
        shas = {artifact.sha256 for artifact in store.artifacts(candidate.candidate_id)}
        if candidate.candidate_id not in seen and not shas & measured:
            found.append({"run_id": run_id, "status": "unmeasured", **_candidate(candidate)})
    names = [column.name for column in COLUMNS]
    return [{name: _finite(values.get(name)) for name in names} for values in found]


def _row(
    row: OutcomeRow,
    owner: tuple[CandidateRow, Artifact] | None,
    boards: Mapping[str, BoardRow],
) -> dict[str, Value]:
    where = context(row, "")
    board = boards.get(row.board_id or "")
    values: dict[str, Value] = {
        "run_id": row.job.run_id,
        "job_id": row.job.job_id,
        "job_kind": row.job.kind,
        "round": row.job.round,
        "position": row.job.position,
        "comparison": row.job.comparison,
        "reused_from": row.job.reused_from,
        "artifact": row.job.artifact,
        "board": row.job.board_name,
        "board_id": row.board_id,
        "board_kind": None if board is None else board.kind,
        "emulator_clock": None if board is None else _emulator_clock(board),
        "runtime": where.runtime,
        "runtime_version": where.runtime_version or None,
        "threads": where.threads,
        "batch": where.batch,
        "started_utc": row.started_utc,
        "wall_s": row.wall_s,
    }
    if owner is not None:
        candidate, artifact = owner
        values |= _candidate(candidate)
        values |= {
            "format": artifact.format,
            "precision": artifact.role,
            "size_bytes": artifact.size_bytes,
        }
    match row.outcome:
        case Failed(fault=fault):
            values |= {
                "status": "failed",
                "fault_owner": fault.owner.value,
                "fault_code": fault.code,
                "message": fault.message,
            }
        case Inconclusive(why=why):
            values |= {"status": "inconclusive", "message": why}
        case Measured():
            values |= {"status": "measured", **_measured(row, row.outcome)}
    return values


def _emulator_clock(board: BoardRow) -> str | None:
    emulator = board.facts.get("emulator")
    clock = emulator.get("clock") if isinstance(emulator, Mapping) else None
    return None if clock is None else str(clock)


def _candidate(candidate: CandidateRow) -> dict[str, Value]:
    return {
        "candidate_id": candidate.candidate_id,
        "candidate": candidate.name,
        "role": candidate.role,
        "workload": candidate.workload or None,
        "seed": candidate.seed,
        "recipe_id": candidate.recipe_id,
        "params": candidate.params,
        "nonzeros": candidate.nonzeros,
        "macs": candidate.macs,
    }


def _measured(row: OutcomeRow, outcome: Measured) -> dict[str, Value]:
    values: dict[str, Value] = {}
    # Other jobs time inferences too, but under faults, profilers or meters.
    latencies = counted(row, "latency_ns") if row.job.kind == "latency" else ()
    if latencies:
        pooled = np.concatenate([np.asarray(taken.values, np.float64) for taken in latencies])
        values |= {
            "processes": len({taken.process for taken in latencies}),
            "latency_clock": latencies[0].kind,
            "latency_n": pooled.size,
            "latency_min_ns": float(pooled.min()),
            "latency_mean_ns": float(pooled.mean()),
            "latency_p10_ns": stats.percentile(pooled, 0.1),
            "latency_p50_ns": stats.percentile(pooled, 0.5),
            "latency_p90_ns": stats.percentile(pooled, 0.9),
            "latency_p99_ns": stats.percentile(pooled, 0.99),
        }
    loads = counted(row, "load_ns")
    if loads:
        values["load_ns"] = stats.percentile([v for taken in loads for v in taken.values], 0.5)
        values["latency_clock"] = loads[0].kind
    peaks = [(v, taken.kind) for taken in counted(row, "rss_bytes") for v in taken.values]
    peaks = [peak for peak in peaks if peak[1] == "ru_maxrss"] or peaks
    if peaks:
        values["memory_peak_bytes"], values["memory_method"] = max(peaks)
    for quantity in _COUNTED:
        if events := [value for taken in counted(row, quantity) for value in taken.values]:
            values[f"{quantity}_p50"] = stats.percentile(events, 0.5)
    energies = counted(row, "energy_nj")
    modelled = [v for taken in energies if taken.kind == "modelled" for v in taken.values]
    if modelled:
        values["energy_nj_modelled_p50"] = stats.percentile(modelled, 0.5)
    if energies:
        joules = [value * 1e-9 for taken in energies for value in taken.values]
        values |= {"energy_class": energies[0].kind, "energy_mean_j": sum(joules) / len(joules)}
    if outcome.agreement is not None:
        values |= {
            "agreement_class": outcome.agreement.kind,
            "agreement_max_abs": outcome.agreement.max_abs,
            "agreement_max_rel": outcome.agreement.max_rel,
            "agreement_top1": outcome.agreement.top1_agree,
            "agreement_ok": outcome.agreement.ok,
        }
    if row.accuracy is not None:
        values |= _accuracy(row)
    return values


def _accuracy(row: OutcomeRow) -> dict[str, Value]:
    found = row.accuracy
    assert found is not None
    values: dict[str, Value] = {
        "accuracy_metric": found.metric,
        "accuracy": found.value,
        "accuracy_n": found.n,
        "split_sha": found.split_sha,
    }
    right: Sequence[bool] | None = found.correct
    if right:
        interval = stats.wilson(sum(right), len(right))
        values |= {"accuracy_low": interval.low, "accuracy_high": interval.high}
    return values


def _finite(value: Value) -> Value:
    """Return the value, or None for NaN and infinities, which JSON and CSV don't carry."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

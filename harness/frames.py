"""A run's outcomes as pandas tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flatsat.outcome import Failed, Inconclusive, Measured
from flatsat.reports import stats

if TYPE_CHECKING:
    import pandas as pd

    from flatsat.artifact import Artifact
    from flatsat.reports.rows import CandidateRow, OutcomeRow, Store

_OUTCOME_COLUMNS = (
    *("run_id", "candidate", "candidate_id", "role", "workload", "seed"),
    *("params", "nonzeros", "macs", "artifact", "precision", "size_bytes"),
    *("board", "board_id", "kind", "runtime", "threads", "batch", "round"),
    *("status", "fault", "message", "clock", "n", "processes"),
    *("min_ns", "mean_ns", "p10_ns", "p50_ns", "p90_ns", "p99_ns"),
    *("peak_rss_bytes", "agreement_ok", "accuracy", "accuracy_n", "started_utc", "wall_s"),
)
_SAMPLE_COLUMNS = (
    *("candidate", "candidate_id", "precision", "board", "threads", "round"),
    *("process", "warm", "index", "latency_ns", "clock"),
)
Known = dict[str, tuple["CandidateRow", "Artifact"]]


def outcomes_frame(store: Store, run_id: str) -> pd.DataFrame:
    """Return one row a job that has an outcome; see `flatsat.load_run`."""
    import pandas as pd

    known = _artifacts(store, run_id)
    rows = [_outcome(row, known) for row in store.outcomes(run_id=run_id)]
    return pd.DataFrame(rows, columns=list(_OUTCOME_COLUMNS)).convert_dtypes()


def samples_frame(store: Store, run_id: str) -> pd.DataFrame:
    """Return one row an inference of the latency jobs; see `flatsat.load_run`."""
    import pandas as pd

    known = _artifacts(store, run_id)
    parts = [part for row in store.outcomes(run_id=run_id) for part in _latencies(row, known)]
    if not parts:
        return pd.DataFrame(columns=list(_SAMPLE_COLUMNS))
    return pd.concat(parts, ignore_index=True)


def _artifacts(store: Store, run_id: str) -> Known:
    return {
        artifact.sha256: (candidate, artifact)
        for candidate in store.candidates(run_id)
        for artifact in store.artifacts(candidate.candidate_id)
    }


def _outcome(row: OutcomeRow, known: Known) -> dict[str, Any]:
    spec, outcome = row.job.spec, row.outcome
    value: dict[str, Any] = {
        **_names(row, known),
        "run_id": row.job.run_id,
        "board_id": row.board_id,
        "kind": row.job.kind,
        "runtime": spec.runtime,
        "batch": spec.batch,
        "status": type(outcome).__name__.lower(),
        "started_utc": row.started_utc,
        "wall_s": row.wall_s,
    }
    if isinstance(outcome, Failed):
        value |= {"fault": outcome.fault.code, "message": outcome.fault.message}
    if isinstance(outcome, Inconclusive):
        value |= {"message": outcome.why}
    if isinstance(outcome, Measured):
        value |= _figures(outcome)
    if row.accuracy is not None:
        value |= {"accuracy": row.accuracy.value, "accuracy_n": row.accuracy.n}
    return value


def _names(row: OutcomeRow, known: Known) -> dict[str, Any]:
    value: dict[str, Any] = {
        "artifact": row.job.artifact,
        "board": row.job.board_name,
        "threads": row.job.spec.threads,
        "round": row.job.round,
    }
    if row.job.artifact in known:
        candidate, artifact = known[row.job.artifact]
        value |= {
            "candidate": candidate.name,
            "candidate_id": candidate.candidate_id,
            "role": candidate.role,
            "workload": candidate.workload,
            "seed": candidate.seed,
            "params": candidate.params,
            "nonzeros": candidate.nonzeros,
            "macs": candidate.macs,
            "precision": artifact.role,
            "size_bytes": artifact.size_bytes,
        }
    return value


def _figures(outcome: Measured) -> dict[str, Any]:
    counted = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm and s.values]
    peaks = [v for s in outcome.samples if s.quantity == "rss_bytes" for v in s.values]
    found: dict[str, Any] = {
        "peak_rss_bytes": max(peaks, default=None),
        "agreement_ok": None if outcome.agreement is None else outcome.agreement.ok,
    }
    if counted:
        values = [value for s in counted for value in s.values]
        found |= {
            "clock": counted[0].kind,
            "n": len(values),
            "processes": len(counted),
            "min_ns": min(values),
            "mean_ns": sum(values) / len(values),
            **{f"p{q}_ns": stats.percentile(values, q / 100) for q in (10, 50, 90, 99)},
        }
    return found


def _latencies(row: OutcomeRow, known: Known) -> Iterator[pd.DataFrame]:
    import pandas as pd

    if not isinstance(row.outcome, Measured):
        return
    names = _names(row, known)
    for samples in row.outcome.samples:
        if samples.quantity == "latency_ns":
            yield pd.DataFrame(
                {
                    "candidate": names.get("candidate"),
                    "candidate_id": names.get("candidate_id"),
                    "precision": names.get("precision"),
                    "board": names["board"],
                    "threads": names["threads"],
                    "round": names["round"],
                    "process": samples.process,
                    "warm": samples.warm,
                    "index": range(len(samples.values)),
                    "latency_ns": samples.values,
                    "clock": samples.kind,
                }
            )

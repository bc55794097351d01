"""Between the record's plain values and the rows of its tables."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsat.artifact import Artifact
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Health,
    Inconclusive,
    Logits,
    Measured,
    Outcome,
    Owner,
    Samples,
)
from flatsat.reports import record, samples
from flatsat.reports.rows import (
    PLANNED,
    AccuracyRow,
    CandidateRow,
    JobRow,
    OutcomeRow,
    RunRow,
)

if TYPE_CHECKING:
    from sqlalchemy import Table

MEASURED, FAILED, INCONCLUSIVE = "measured", "failed", "inconclusive"

Row: TypeAlias = Mapping[Any, Any]


def lenient_json(value: object) -> str:
    """Return JSON in which NaN and infinities, which it lacks, are written as strings.

    Evidence comes from boards: it must be kept, whatever a sensor or a network gave.
    """
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def plain_text(value: str) -> str:
    """Return text that every database takes: no lone surrogates, no NUL."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {
        name: plain_text(value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def run_values(run: RunRow) -> dict[str, object]:
    """Return the columns of a run."""
    return asdict(run)


def run_row(row: Row) -> RunRow:
    """Read a run."""
    return RunRow(**row)


def candidate_values(candidate: CandidateRow) -> dict[str, Any]:
    """Return the columns of a candidate."""
    values = asdict(candidate)
    for name in ("cost", "accuracy_host", "layers", "recipe"):
        values[f"{name}_json"] = lenient_json(values.pop(name))
    return values


def candidate_row(row: Row) -> CandidateRow:
    """Read a candidate."""
    values = dict(row)
    for name in ("cost", "accuracy_host", "layers", "recipe"):
        values[name] = json.loads(values.pop(f"{name}_json"))
    values["layers"] = tuple(values["layers"])
    return CandidateRow(**values)


def artifact_values(artifact: Artifact) -> dict[str, object]:
    """Return the columns of an artifact but its key and position."""
    value = artifact.to_json()
    rest = ("inputs", "outputs", "lowered_from", "goldens", "agreement", "coded")
    return {
        "format": artifact.format,
        "role": artifact.role,
        "bytes": artifact.size_bytes,
        "file": artifact.file,
        "opset": artifact.opset,
        "ir": artifact.ir,
        "layout": artifact.layout,
        "io_json": lenient_json({name: value[name] for name in rest}),
    }


def artifact(row: Row) -> Artifact:
    """Read an artifact."""
    columns = ("sha256", "format", "role", "file", "opset", "ir", "layout")
    return Artifact.from_json(
        {
            **{name: row[name] for name in columns},
            "size_bytes": row["bytes"],
            **json.loads(row["io_json"]),
        }
    )


def job_values(job: JobRow, run_id: str) -> dict[str, object]:
    """Return the columns of a job that is planned anew."""
    return {
        "job_id": job.job_id,
        "run_id": run_id,
        "board_name": job.board_name,
        "artifact": job.artifact,
        "kind": str(job.kind),
        "spec_json": job.spec_json,
        "round": job.round,
        "position": job.position,
        "comparison": job.comparison,
        "state": PLANNED,
        "attempt": 0,
    }


def job_row(row: Row) -> JobRow:
    """Read a job."""
    return JobRow(**row)


def outcome_inserts(
    job_id: str,
    outcome: Outcome,
    started_utc: str,
    wall_s: float,
    accuracy: AccuracyRow | None,
) -> list[tuple[Table, list[dict[str, object]]]]:
    """Return every row that an outcome becomes, by table, in an order that foreign keys allow."""
    head: dict[str, object] = {
        "job_id": job_id,
        "owner": None,
        "transient": None,
        "code": None,
        "message": None,
        "hint": None,
        "started_utc": started_utc,
        "wall_s": wall_s,
        "evidence_json": lenient_json(outcome.evidence),
    }
    taken: Sequence[Samples] = ()
    agreement: list[dict[str, object]] = []
    logits: list[dict[str, object]] = []
    match outcome:
        case Failed(fault=fault):
            head |= {
                "status": FAILED,
                "owner": fault.owner.value,
                "transient": fault.transient,
                "code": plain_text(fault.code),
                "message": plain_text(fault.message),
                "hint": plain_text(fault.hint),
            }
        case Inconclusive():
            head |= {"status": INCONCLUSIVE, "message": plain_text(outcome.why)}
            taken = outcome.samples
        case Measured():
            head["status"] = MEASURED
            taken = outcome.samples
            if outcome.agreement is not None:
                agreement.append(_agreement_values(job_id, outcome.agreement))
            if outcome.logits is not None:
                logits.append(_logits_values(job_id, outcome.logits))
    return [
        (record.outcome, [head]),
        (record.sample, [_sample_values(job_id, i, s) for i, s in enumerate(taken)]),
        (record.agreement, agreement),
        (record.logits, logits),
        (record.accuracy, [] if accuracy is None else [_accuracy_values(job_id, accuracy)]),
        (
            record.health,
            [
                {"job_id": job_id, "ordinal": ordinal, **_plain(asdict(health))}
                for ordinal, health in enumerate(outcome.health)
            ],
        ),
    ]


def _sample_values(job_id: str, ordinal: int, taken: Samples) -> dict[str, object]:
    return {
        "job_id": job_id,
        "ordinal": ordinal,
        "process": taken.process,
        "quantity": plain_text(taken.quantity),
        "class": str(taken.kind),
        "warm": taken.warm,
        "n": len(taken.values),
        "enc": samples.ENCODING,
        "blob": samples.encode(taken.values),
    }


def _agreement_values(job_id: str, found: AgreementResult) -> dict[str, object]:
    return {
        "job_id": job_id,
        "class": found.kind,
        "max_abs": _number(found.max_abs),
        "max_rel": _number(found.max_rel),
        "p99_abs": _number(found.p99_abs),
        "top1_agree": _number(found.top1_agree),
        "n": found.n,
        "ok": found.ok,
    }


def _logits_values(job_id: str, logits: Logits) -> dict[str, object]:
    return {
        "job_id": job_id,
        "dtype": logits.dtype,
        "shape_json": json.dumps(list(logits.shape)),
        "blob": samples.compress(logits.data),
    }


def _accuracy_values(job_id: str, found: AccuracyRow) -> dict[str, object]:
    bits = None
    if found.correct is not None:
        if len(found.correct) != found.n:
            raise ValueError(f"{len(found.correct)} answers judged, but n is {found.n}")
        bits = np.packbits(np.asarray(found.correct, dtype=bool)).tobytes()
    return {
        "job_id": job_id,
        "split_sha": found.split_sha,
        "metric": found.metric,
        "n": found.n,
        "value": _number(found.value),
        "correct_bits": bits,
    }


@dataclass(frozen=True)
class Parts:
    """Rows of the outcomes' tables; `asked` in each is the job they are returned for."""

    outcome: Sequence[Row]
    accuracy: Sequence[Row]
    agreement: Sequence[Row]
    health: Sequence[Row]
    sample: Sequence[Row]
    logits: Sequence[Row]


def assemble(jobs: Sequence[JobRow], parts: Parts) -> list[OutcomeRow]:
    """Put outcomes together from their rows, one for each of `jobs`, in that order."""
    heads = {row["asked"]: row for row in parts.outcome}
    accuracy = {row["asked"]: _accuracy(row) for row in parts.accuracy}
    agreement = {row["asked"]: _agreement(row) for row in parts.agreement}
    logits = {row["asked"]: _logits(row) for row in parts.logits}
    health: dict[str, list[Health]] = defaultdict(list)
    for row in parts.health:
        health[row["asked"]].append(_health(row))
    taken: dict[str, list[Samples]] = defaultdict(list)
    for row in parts.sample:
        taken[row["asked"]].append(_samples(row))

    def outcome(job_id: str, head: Row) -> Outcome:
        shared: dict[str, Any] = {
            "health": tuple(health[job_id]),
            "evidence": json.loads(head["evidence_json"]),
        }
        if head["status"] == FAILED:
            fault = Fault(
                Owner(head["owner"]), head["transient"], head["code"], head["message"], head["hint"]
            )
            return Failed(fault, **shared)
        shared["samples"] = tuple(taken[job_id])
        if head["status"] == INCONCLUSIVE:
            return Inconclusive(head["message"], **shared)
        return Measured(agreement=agreement.get(job_id), logits=logits.get(job_id), **shared)

    return [
        OutcomeRow(
            job,
            outcome(job.job_id, head),
            job.board_id,
            head["started_utc"],
            head["wall_s"],
            accuracy.get(job.job_id),
        )
        for job in jobs
        for head in (heads[job.job_id],)
    ]


def _accuracy(row: Row) -> AccuracyRow:
    correct = None
    if row["correct_bits"] is not None:
        bits = np.unpackbits(np.frombuffer(row["correct_bits"], dtype=np.uint8), count=row["n"])
        correct = tuple(bits.astype(bool).tolist())
    return AccuracyRow(row["split_sha"], row["metric"], row["n"], _or_nan(row["value"]), correct)


def _agreement(row: Row) -> AgreementResult:
    return AgreementResult(
        row["class"],
        _or_nan(row["max_abs"]),
        _or_nan(row["max_rel"]),
        _or_nan(row["p99_abs"]),
        _or_nan(row["top1_agree"]),
        row["n"],
        row["ok"],
    )


def _logits(row: Row) -> Logits:
    shape = tuple(json.loads(row["shape_json"]))
    return Logits(row["dtype"], shape, samples.decompress(row["blob"]))


def _health(row: Row) -> Health:
    skip = ("asked", "job_id", "ordinal")
    return Health(**{name: value for name, value in row.items() if name not in skip})


def _samples(row: Row) -> Samples:
    values = samples.decode(row["blob"], row["n"], row["enc"])
    return Samples(row["quantity"], row["class"], row["process"], row["warm"], values)

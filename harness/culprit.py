"""Which layer makes outputs differ: a board's against this machine's, int8 against float."""

from __future__ import annotations

import asyncio
import io
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.canonical import sha256_bytes
from flatsat.errors import FlatSatError, ModelError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Measured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.compressors.layer_errors import LayerError
    from flatsat.outcome import Outcome
    from flatsat.targets.board import Session

IMAGES = 16
"""Goldens that are looked at."""
MOST_VALUES = 1 << 22
"""Between all layers of all images: they are one output of the board's."""


def is_disagreement(outcome: Outcome, spec: JobSpec) -> bool:
    """Return whether `name_layer` has something to look for."""
    return (
        isinstance(outcome, Failed)
        and outcome.fault.code == "disagrees"
        and spec.format == "onnx"
        and spec.goldens is not None
    )


async def name_layer(
    session: Session, job_id: str, spec: JobSpec, files: Mapping[str, Path], outcome: Failed
) -> Failed:
    """Return the failure with the layer that it begins at in its message and its evidence.

    The board runs the same file once more, with what lies between its layers as its output, and so
    does this machine. A board or a runtime that can't is no reason to lose the failure itself.

    Args:
        session: with the board.
        job_id: of the job that failed.
        spec: of it.
        files: sha256 -> file, for its model and goldens.
        outcome: of it.
    """
    try:
        errors = await _compare(session, job_id, spec, files)
    except (FlatSatError, OSError, ValueError, IndexError, KeyError) as error:
        return replace(outcome, evidence={**outcome.evidence, "layers_unknown": str(error)})
    from flatsat.compressors.layer_errors import culprit

    first = culprit(errors)
    told = {"layers": [asdict(error) for error in errors], "culprit": first and first.layer}
    fault = replace(outcome.fault, message=f"{outcome.fault.message}; {said(errors)}")
    return replace(outcome, fault=fault, evidence={**outcome.evidence, **told})


def said(errors: tuple[LayerError, ...]) -> str:
    """Return in words where two runs of one file part."""
    from flatsat.compressors.layer_errors import BEST_DB, culprit, worst

    first = culprit(errors)
    if first is not None:
        return f"the first layer to differ is {first.layer} (SQNR {first.sqnr_db:.1f} dB)"
    least = min((error.sqnr_db for error in errors), default=BEST_DB)
    if least >= BEST_DB:
        return "all layers are as on this machine: the goldens are another file's"
    most = worst(errors)
    assert most is not None
    return f"no layer differs at once, the most {most.layer} (SQNR {most.sqnr_db:.1f} dB)"


def int8_errors(candidate: Candidate, artifacts: Sequence[Artifact] | None = None) -> list[str]:
    """Return in words what the int8 files' layers are off float, as far as the candidate tells.

    Args:
        candidate: perhaps with int8 files.
        artifacts: of it, whose jumps alone are wanted; None tells all.
    """
    chosen = None if artifacts is None else {artifact.sha256 for artifact in artifacts}
    lines = []
    for entry in candidate.history:
        ratios = {
            e["layer"]: float(e["sqnr_db"]) for e in entry.get("layers", ()) if "sqnr_db" in e
        }
        if not ratios or (chosen is not None and entry.get("artifact") not in chosen):
            continue
        first = entry.get("culprit")
        if first in ratios:
            lines.append(f"int8's error jumps at layer {first} (SQNR {ratios[first]:.1f} dB)")
        elif chosen is None:
            least = min(ratios, key=ratios.__getitem__)
            lines.append(f"no layer's error jumps; least SQNR {ratios[least]:.1f} dB at {least}")
    return lines


async def _compare(
    session: Session, job_id: str, spec: JobSpec, files: Mapping[str, Path]
) -> tuple[LayerError, ...]:
    from flatsat.compressors.layer_errors import exposed, layer_errors, layer_outputs, split

    data = files[spec.artifact].read_bytes()
    inputs = _inputs(files[spec.goldens or ""], data)
    whole, probes = exposed(data)
    here = await asyncio.to_thread(layer_outputs, data, inputs)
    if len(next(iter(inputs.values()))) == 1:
        # An open batch: as many more as the board can be asked to tell.
        values = sum(tensor.size for tensor in here.values())
        most = max(1, min(IMAGES, MOST_VALUES // max(1, values)))
        inputs = _inputs(files[spec.goldens or ""], data, most)
        here = await asyncio.to_thread(layer_outputs, data, inputs)
    images = io.BytesIO()
    _save(images, inputs)
    with tempfile.TemporaryDirectory(prefix="flatsat-layers-") as folder:
        kept = {}
        for name, content in (("layers.onnx", whole), ("images.npz", images.getvalue())):
            path = Path(folder, name)
            path.write_bytes(content)
            kept[name] = sha256_bytes(content)
            await session.put(kept[name], path)
        wanted = replace(
            spec,
            kind=JobKind.ACCURACY,
            artifact=kept["layers.onnx"],
            dataset=kept["images.npz"],
            goldens=None,
            agreement=None,
            batch=len(next(iter(inputs.values()))),
            plan=replace(spec.plan, processes=1),
        )
        found = await session.run(f"{job_id}-layers", wanted)
    there = split(_values(found), probes, here)
    return layer_errors(probes, here, there)


def _inputs(goldens: Path, data: bytes, count: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Return some golden inputs by name, as many as a fixed batch takes."""
    import numpy as np

    from flatsat.compressors.onnx_model import parse

    first = parse(data, "the model").graph.input[0].type.tensor_type.shape.dim[0]
    rows = first.dim_value if first.HasField("dim_value") else count
    with np.load(goldens, allow_pickle=False) as stored:
        return {key[3:]: stored[key][:rows] for key in stored.files if key.startswith("in:")}


def _save(stream: io.BytesIO, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {f"in:{name}": values for name, values in inputs.items()}
    np.savez(stream, **arrays)


def _values(outcome: Outcome) -> np.ndarray[Any, Any]:
    import numpy as np

    if isinstance(outcome, Failed):
        raise ModelError(outcome.fault.message)
    if not isinstance(outcome, Measured) or outcome.logits is None:
        raise ModelError("the board told no layers")
    logits = outcome.logits
    return np.frombuffer(logits.data, logits.dtype).reshape(logits.shape)

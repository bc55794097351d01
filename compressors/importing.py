"""Networks that FlatSat did not make: any ONNX, TFLite or sparse-c file becomes a candidate."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.coded.container import decode, is_coded, read_header
from flatsat.coded.errors import CodedError
from flatsat.compressors.agreement import policy
from flatsat.compressors.candidate import (
    BUILDING,
    Candidate,
    candidate_id,
    load,
    publish,
    put_goldens,
    save,
    writing,
)
from flatsat.compressors.onnx_model import ModelInfo, embedded, inspect, output_step, parse
from flatsat.compressors.sparse_program import FORMAT as SPARSE
from flatsat.compressors.sparse_program import Program, is_sparse_program
from flatsat.compressors.sparse_read import read as read_sparse
from flatsat.compressors.tflite_model import inspect as inspect_tflite
from flatsat.compressors.tflite_model import is_tflite, read
from flatsat.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

    from flatsat.artifact import Agreement
    from flatsat.compressors.tflite_model import TfliteInfo
    from flatsat.tensors import TensorSpec

    Arrays = Mapping[str, np.ndarray[Any, Any]]


def import_model(
    path: Path, goldens: Path | None, candidates_dir: Path, name: str | None = None
) -> Candidate:
    """Make a candidate of role "imported" from an ONNX or a TFLite file or a sparse program.

    Which it is, the content says, not the name. A file of coded weights is decoded first.

    Weights that the model keeps in other files are put inside the candidate's file. Importing the
    same model again gives the same candidate; goldens and a name that are given replace those
    that it had.

    Args:
        path: of the model.
        goldens: an `.npz` of arrays "in:NAME" and "out:NAME", one for each input and output; the
            first axis counts the goldens where the model's first axis is open, or where it is
            fixed (then in multiples of its length). None: agreement can't be checked on a board.
        candidates_dir: where candidates lie; made if need be.
        name: for people; None takes the file's name without its ending.

    Raises:
        ModelError: the model can't be read (see `inspect` of `onnx_model` and `tflite_model`), or
            the goldens don't fit its signature; the message names what is missing or wrong.
        UsageError: the folder can't be written to.
        InfrastructureError: the disk is full.
    """
    if is_coded(_head(path)):
        with tempfile.TemporaryDirectory(prefix="flatsat-decode-") as place:
            plain = _decoded(path, Path(place))
            return import_model(plain, goldens, candidates_dir, name)
    model = _read(path)
    info = model.info
    arrays = None if goldens is None else read_goldens(goldens, info.inputs, info.outputs)
    with writing(candidates_dir):
        building = candidates_dir / BUILDING
        building.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="import-", dir=building))
        try:
            candidate = _make(folder, model, arrays, _label(name or path.stem))
            _replace_goldens(candidates_dir / candidate.candidate_id, candidate)
            placed = publish(candidate, candidates_dir)
            if name is not None and placed.name != candidate.name:
                placed = replace(placed, name=candidate.name)
                save(placed)
            return placed
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def read_goldens(
    path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[Arrays, Arrays]:
    """Read goldens and check them against a model's signature; return inputs and outputs by name.

    Raises:
        ModelError: no `.npz`, an array is missing, unknown, or of another type or shape.
    """
    arrays = _read_npz(path)
    wanted = {f"in:{spec.name}": spec for spec in inputs}
    wanted |= {f"out:{spec.name}": spec for spec in outputs}
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise ModelError(
            f"{path} lacks {', '.join(missing)}",
            hint=f"it has {', '.join(arrays) or 'no arrays'}",
        )
    unknown = [key for key in arrays if key not in wanted]
    if unknown:
        raise ModelError(
            f"{path}: the model has no {', '.join(unknown)}", hint=f"it has {', '.join(wanted)}"
        )
    axes: dict[str, tuple[int, str]] = {}
    counts: dict[str, int] = {}
    for key, spec in wanted.items():
        array = arrays[key]
        if array.dtype.name != spec.dtype:
            raise ModelError(f"{path}: {key} holds {array.dtype}, the model's is {spec.dtype}")
        _check_shape(path, key, array.shape, spec, axes)
        if spec.shape:
            length = spec.shape[0]
            counts[key] = array.shape[0] // length if isinstance(length, int) else array.shape[0]
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{key}: {n}" for key, n in counts.items())
        raise ModelError(f"{path}: the arrays hold different numbers of goldens ({told})")
    return (
        {spec.name: arrays[f"in:{spec.name}"] for spec in inputs},
        {spec.name: arrays[f"out:{spec.name}"] for spec in outputs},
    )


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ModelError(f"{path} is a single array, no .npz archive")
        with stored:
            return {key: stored[key] for key in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        text = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is no .npz archive of plain arrays: {text}") from error
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error


def _check_shape(
    path: Path,
    key: str,
    shape: tuple[int, ...],
    spec: TensorSpec,
    axes: dict[str, tuple[int, str]],
) -> None:
    """Refuse a shape that the signature doesn't allow; `axes` gathers open axes over the arrays."""
    stated = "(" + ", ".join(str(length) for length in spec.shape) + ")"
    if spec.shape == (f"{spec.name}_axes",):
        return  # The model does not tell this output's rank.
    if len(shape) != len(spec.shape):
        raise ModelError(f"{path}: {key} has shape {shape}, the model's is {stated}")
    for position, (length, expected) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(expected, str):
            known, where = axes.setdefault(expected, (length, key))
            if known != length:
                raise ModelError(
                    f"{path}: axis {expected!r} is {known} long in {where} and {length} in {key}"
                )
        elif length != expected and (
            position > 0 or length == 0 or expected == 0 or length % expected
        ):
            raise ModelError(f"{path}: {key} has shape {shape}, the model's is {stated}")


@dataclass(frozen=True)
class _Model:
    """A model file of any format, read.

    Attributes:
        format: "onnx", "tflite" or "sparse-c".
        data: all of it, weights from other files included.
        info: its signature and counts.
        opset, ir: of ONNX files.
        history: what the import tells.
        agreement: the policy that suits its outputs.
    """

    format: str
    data: bytes
    info: ModelInfo | TfliteInfo | Program
    opset: int | None
    ir: int | None
    history: Mapping[str, object]
    agreement: Agreement


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError:
        return b""


def _decoded(path: Path, folder: Path) -> Path:
    """Write the model file that was coded into `folder`, under its own name.

    Raises:
        ModelError: the coded file is damaged.
    """
    from flatsat.compressors.codec import SUFFIX, coder_library

    try:
        data = path.read_bytes()
        suffix = read_header(data).suffix
        model = decode(data, library=coder_library())
    except CodedError as error:
        raise ModelError(f"{path}: {error}", hint="send or copy the file again") from error
    stem = path.name.removesuffix(SUFFIX).removesuffix(f".{suffix}") or "model"
    plain = folder / f"{stem}.{suffix}"
    plain.write_bytes(model)
    return plain


def _read(path: Path) -> _Model:
    head = _head(path)
    if is_sparse_program(head):
        program, data = read_sparse(path)
        return _Model(SPARSE, data, program, None, None, {"step": "import"}, policy(None))
    if is_tflite(head):
        data = read(path)
        found = inspect_tflite(data, str(path))
        dtypes = [spec.dtype for spec in found.outputs]
        quantised = any(spec.scale is not None for spec in found.outputs)
        agreement = policy(1.0 if quantised else None, _coarsest(dtypes))
        return _Model("tflite", data, found, None, None, {"step": "import"}, agreement)
    info = inspect(path)
    data = embedded(path)
    told = {"step": "import", "valid": info.valid, "problem": info.problem}
    return _Model("onnx", data, info, info.opset, info.ir, told, _agreement(data, info))


def _make(
    folder: Path,
    model: _Model,
    goldens: tuple[Arrays, Arrays] | None,
    name: str,
) -> Candidate:
    data, info = model.data, model.info
    sha256 = sha256_bytes(data)
    file = f"imported-{sha256[:12]}.{model.format}"
    (folder / file).write_bytes(data)
    artifact = Artifact(
        sha256=sha256,
        format=model.format,
        role="imported",
        size_bytes=len(data),
        file=file,
        opset=model.opset,
        ir=model.ir,
        layout="",
        inputs=info.inputs,
        outputs=info.outputs,
        goldens=None if goldens is None else put_goldens(folder, *goldens),
        agreement=None if goldens is None else model.agreement,
    )
    candidate = Candidate(
        candidate_id=candidate_id((artifact,)),
        recipe_id="",
        recipe={},
        name=name,
        workload="",
        seed=0,
        parent=None,
        artifacts=(artifact,),
        params=info.params,
        nonzeros=info.nonzeros,
        macs=info.macs,
        size_bytes=len(data),
        cost={},
        accuracy_host={},
        layers=(),
        role="imported",
        folder=folder,
        history=(model.history,),
    )
    save(candidate)
    return candidate


def _agreement(data: bytes, info: ModelInfo) -> Agreement:
    """Return the policy that suits the model's coarsest output."""
    model = parse(data, "the model")
    steps = [output_step(model, spec.name) or 0.0 for spec in info.outputs]
    return policy(max(steps), _coarsest([spec.dtype for spec in info.outputs]))


def _coarsest(dtypes: Sequence[str]) -> str:
    """Return the float type of least precision among these, else the first type."""
    return next((d for d in ("float16", "float32", "float64") if d in dtypes), dtypes[0])


def _label(name: str) -> str:
    """Return a name that any file system and any command line takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "imported"


def _replace_goldens(place: Path, candidate: Candidate) -> None:
    """Make way for a candidate with goldens where the same model has others or none."""
    try:
        present = load(place)
    except ModelError:
        return
    given = candidate.artifacts[0].goldens
    if given is not None and present.artifacts[0].goldens != given:
        shutil.rmtree(place)

"""A candidate: a folder with one network's artifacts, its goldens, and what is known of them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json, sha256_bytes, sha256_file, sha256_json
from flatsat.errors import InfrastructureError, ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
CANDIDATE_FILE = "candidate.json"
MASKS_FILE = "masks.npz"
# Where unfinished folders lie. Not directly among the candidates: nothing there but finished ones
# has a candidate.json one level down.
BUILDING = "building"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA = re.compile(r"[0-9a-f]{64}")
_NPZ_DATE = (1980, 1, 1, 0, 0, 0)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Errors of a disk that is full or failing."""


@dataclass(frozen=True)
class Candidate:
    """The artifacts of one network and their provenance.

    Attributes:
        candidate_id: hash of the sorted hashes of the artifacts and their coded forms; two recipes
            that give the same files share one candidate, which keeps the recipe that came first.
        recipe_id: hash of the intent; "" for an import.
        recipe: the recipe as JSON; {} for an import.
        name: what people call it.
        workload: "mnist-mini/lenet5"; "" for an import.
        seed: of the recipe; 0 for an import.
        parent: candidate_id of the candidate that this was made from, or None.
        artifacts: in the order of the recipe's lowerings.
        params, nonzeros, macs: of the network; macs is None where an imported file hides them.
        size_bytes: of all artifacts together.
        cost: of the compression, without training the reference: "train_steps", "cpu_s",
            "forward_passes" (images); and "reference_train_s" as it was when the reference was
            trained.
        accuracy_host: on the host, by split: "validation" for the network, "validation/ROLE" for
            an artifact of another role than float, "validation/ROLE/FORMAT" for a second one of the
            same role. The host's accuracy is no evidence of a board's.
        layers: one mapping a layer: name, kind, params, nonzeros, macs, out_shape and more.
        role: "reference", "equal-macs", "compressed" or "imported".
        folder: where it lies; not part of the file.
        splits: sha256 of the splits that it was made and judged with, by name.
        bytes_by_coding: size of the parameters under each way to store them (`storage`).
        history: what each step tells, in order; passes over artifacts follow the transforms.
    """

    candidate_id: str
    recipe_id: str
    recipe: Mapping[str, Any]
    name: str
    workload: str
    seed: int
    parent: str | None
    artifacts: tuple[Artifact, ...]
    params: int
    nonzeros: int
    macs: int | None
    size_bytes: int
    cost: Mapping[str, float]
    accuracy_host: Mapping[str, float]
    layers: tuple[Mapping[str, Any], ...]
    role: str
    folder: Path
    splits: Mapping[str, str] = field(default_factory=dict)
    bytes_by_coding: Mapping[str, int] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    def path(self, artifact: Artifact) -> Path:
        """Return where an artifact's file lies."""
        return self.folder / artifact.file

    def coded_path(self, artifact: Artifact) -> Path | None:
        """Return where an artifact's coded form lies, or None without one."""
        return None if artifact.coded is None else self.folder / artifact.coded.file

    def goldens(self, artifact: Artifact) -> Path | None:
        """Return where an artifact's goldens lie, or None without goldens."""
        return None if artifact.goldens is None else goldens_path(self.folder, artifact.goldens)

    def artifact(self, role: str) -> Artifact:
        """Return the first artifact of a role.

        Raises:
            ModelError: there is none.
        """
        for artifact in self.artifacts:
            if artifact.role == role:
                return artifact
        roles = ", ".join(a.role for a in self.artifacts)
        raise ModelError(f"candidate {self.name!r} has no {role!r} artifact", hint=f"has {roles}")

    def masks(self) -> dict[str, np.ndarray]:
        """Return the sparsity pictures: layer name -> bool array of the weight's shape."""
        import numpy as np

        path = self.folder / MASKS_FILE
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            pictures: dict[str, np.ndarray] = {}
            for key in stored.files:
                kind, _, layer = key.partition(":")
                if kind == "mask":
                    shape = tuple(int(n) for n in stored[f"shape:{layer}"])
                    bits = np.unpackbits(stored[key], count=int(np.prod(shape)))
                    pictures[layer] = bits.astype(bool).reshape(shape)
            return pictures

    def to_json(self) -> dict[str, Any]:
        """Return what `candidate.json` holds."""
        value = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}
        value["artifacts"] = [artifact.to_json() for artifact in self.artifacts]
        value["layers"] = [dict(layer) for layer in self.layers]
        value["history"] = [dict(entry) for entry in self.history]
        return {"schema": SCHEMA, **value}


def candidate_id(artifacts: tuple[Artifact, ...]) -> str:
    """Return the hash of the artifacts' sorted hashes as 64 hex digits, coded forms included."""
    hashes = [artifact.sha256 for artifact in artifacts]
    hashes += [artifact.coded.sha256 for artifact in artifacts if artifact.coded is not None]
    return sha256_json(sorted(hashes))


def goldens_path(folder: Path, sha256: str) -> Path:
    """Return where goldens lie in a candidate's folder."""
    return folder / "goldens" / f"{sha256}.npz"


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return an `.npz` archive whose bytes depend on nothing but the arrays and their names."""
    import numpy as np

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_NPZ_DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            data = io.BytesIO()
            np.lib.format.write_array(
                data, np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape)
            )
            archive.writestr(member, data.getvalue())
    return out.getvalue()


def put_goldens(
    folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> str:
    """Write goldens into a candidate's folder and return their sha256.

    Args:
        folder: of the candidate.
        inputs: by tensor name; the first axis counts the goldens.
        outputs: likewise.
    """
    arrays = {f"in:{name}": value for name, value in inputs.items()}
    arrays |= {f"out:{name}": value for name, value in outputs.items()}
    data = npz_bytes(arrays)
    sha256 = sha256_bytes(data)
    path = goldens_path(folder, sha256)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return sha256


def put_masks(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write sparsity pictures (layer name -> bool array, true where kept) as packed bits."""
    import numpy as np

    arrays: dict[str, np.ndarray] = {}
    for layer, mask in pictures.items():
        arrays[f"mask:{layer}"] = np.packbits(mask.astype(bool).reshape(-1))
        arrays[f"shape:{layer}"] = np.asarray(mask.shape, dtype=np.int64)
    (folder / MASKS_FILE).write_bytes(npz_bytes(arrays))


def save(candidate: Candidate) -> None:
    """Write `candidate.json` into the candidate's folder, last of its files and at once."""
    path = candidate.folder / CANDIDATE_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(canonical_json(candidate.to_json()) + "\n", encoding="utf-8")
    _fsync(temporary)
    temporary.replace(path)


def publish(candidate: Candidate, candidates_dir: Path) -> Candidate:
    """Move a finished folder to its place under its id, at once, and return the candidate there.

    A sound candidate of the same id that already lies there wins; a broken one is replaced.
    """
    place = candidates_dir / candidate.candidate_id
    for path in sorted(candidate.folder.rglob("*")):
        _fsync(path)
    if place.exists():
        try:
            present = load(place)
        except ModelError:
            shutil.rmtree(place)
        else:
            shutil.rmtree(candidate.folder)
            return present
    try:
        candidate.folder.rename(place)
    except OSError as error:
        # Another process published the same candidate in between.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(candidate.folder)
    _fsync(candidates_dir)
    return load(place)


def load(folder: Path) -> Candidate:
    """Read a candidate's folder and check each file against its hash.

    Raises:
        ModelError: the folder is no candidate, or a file of it is missing or was changed.
    """
    path = folder / CANDIDATE_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is no candidate: {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ModelError(f"{path} is no candidate of schema {SCHEMA}")
    value = {key: item for key, item in value.items() if key != "schema"}
    try:
        value["artifacts"] = tuple(Artifact.from_json(item) for item in value["artifacts"])
        value["layers"] = tuple(value["layers"])
        value["history"] = tuple(value["history"])
        candidate = Candidate(**value, folder=folder)
    except (KeyError, TypeError, AssertionError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{path} lacks or misspells a field: {text}") from error
    _verify(candidate)
    return candidate


def load_candidate(path: Path) -> Candidate:
    """Read a candidate from its folder or from its `candidate.json`.

    Raises:
        ModelError: as `load`.
    """
    return load(path.parent if path.name == CANDIDATE_FILE else path)


def is_safe_name(name: str) -> bool:
    """Tell whether a file name can stand in any archive and on any file system."""
    return len(name) <= 120 and _SAFE_NAME.fullmatch(name) is not None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make errors of the file system one line of FlatSat's own.

    Raises:
        InfrastructureError: the disk is full or failing.
        UsageError: the folder can't be written to.
    """
    try:
        yield
    except OSError as error:
        text = f"can't write to {folder}: {error.strerror or error}"
        if error.errno in FULL:
            raise InfrastructureError(text, hint="free some space and run again") from error
        raise UsageError(text, hint="choose another folder, or change its permissions") from error


def _verify(candidate: Candidate) -> None:
    for artifact in candidate.artifacts:
        if not is_safe_name(artifact.file):
            raise ModelError(f"{candidate.folder}: unsafe artifact name {artifact.file!r}")
        _verify_file(candidate.folder / artifact.file, artifact.sha256)
        if artifact.coded is not None:
            if not is_safe_name(artifact.coded.file):
                raise ModelError(f"{candidate.folder}: unsafe name {artifact.coded.file!r}")
            _verify_file(candidate.folder / artifact.coded.file, artifact.coded.sha256)
        if artifact.goldens is not None:
            if not _SHA.fullmatch(artifact.goldens):
                raise ModelError(f"{candidate.folder}: goldens {artifact.goldens!r} are no hash")
            _verify_file(goldens_path(candidate.folder, artifact.goldens), artifact.goldens)
    if candidate.candidate_id != candidate_id(candidate.artifacts):
        raise ModelError(f"{candidate.folder}: its id isn't that of its artifacts")


def _verify_file(path: Path, sha256: str) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}") from error
    if found != sha256:
        raise ModelError(
            f"{path} was changed: its sha256 starts with {found[:12]}, not {sha256[:12]}",
            hint="delete this candidate's folder and build or import it again",
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

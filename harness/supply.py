"""What jobs are given beside a model: test images as each model takes them, probe models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_bytes
from flatsat.errors import DataError
from flatsat.harness.execute import Labels
from flatsat.harness.lab import write_atomically

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab


def probe_models(lab: Lab) -> tuple[str, Path]:
    """Store the probe models of capability jobs; return their sha256 and file."""
    from flatsat.targets.probes import probe_zip

    data = probe_zip()
    sha256 = sha256_bytes(data)
    path = lab.data_dir / f"{sha256}.zip"
    if not path.exists():
        write_atomically(path, data)
    return sha256, path


def test_images(
    lab: Lab, candidates: Sequence[Candidate]
) -> tuple[dict[str, str], dict[str, Labels]]:
    """Store the test images as each artifact takes them; return artifact -> data, data -> labels.

    Most artifacts of a workload take the same: what differs is the layout and the type of input.
    """
    datasets: dict[str, str] = {}
    labels: dict[str, Labels] = {}
    stored: dict[tuple[object, ...], str] = {}
    for candidate in candidates:
        workload = candidate.workload.partition("/")[0]
        if not workload:
            continue
        for artifact in candidate.artifacts:
            if len(artifact.inputs) != 1:
                continue
            source = artifact.inputs[0]
            kind = (source.name, source.dtype, source.scale, source.zero_point)
            data = candidate.recipe.get("data")
            key = (workload, data, artifact.layout, *kind)
            if key not in stored:
                sha256, found = test_tensors(lab, candidate, artifact)
                stored[key], labels[sha256] = sha256, found
            datasets[artifact.sha256] = stored[key]
    return datasets, labels


def test_tensors(lab: Lab, candidate: Candidate, artifact: Artifact) -> tuple[str, Labels]:
    """Store a workload's test images as an artifact takes them; return sha256 and labels.

    This is where the test split is opened: for accuracy jobs, after all choices were made.

    Raises:
        DataError: data at a path of the recipe are not what the candidate was made from.
    """
    from flatsat.datasets.workload import workload as find
    from flatsat.layouts import for_model

    data = candidate.recipe.get("data")
    task = find(candidate.workload.partition("/")[0], data)
    made_from = candidate.recipe.get("data_sha256")
    if made_from is not None and task.data_sha256() != made_from:
        raise DataError(
            f"{data}: the data changed since {candidate.name} was made from them",
            hint="put them back, or compress it again",
        )
    split = task.splits(lab.cache_dir).open_test()
    source = artifact.inputs[0]
    images = for_model(split.x, source, artifact.layout)
    return lab.put_data({f"in:{source.name}": images}), Labels(split.sha256, task.metric, split.y)

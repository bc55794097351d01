"""What candidates' folders give a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flatsat.artifact import Artifact, Coded
from flatsat.canonical import sha256_bytes
from flatsat.compressors.candidate import Candidate, candidate_id, put_goldens, put_masks, save
from flatsat.compressors.pictures import put_pictures
from flatsat.harness.lab import Lab
from flatsat.harness.publish import report
from flatsat.harness.run import candidate_row
from flatsat.harness.survey import survey_of
from flatsat.reports.rows import RunRow
from flatsat.tensors import TensorSpec

if TYPE_CHECKING:
    from flatsat.reports.store import SqlStore

BITS4: Mapping[str, Any] = {"use": "linear-quantise", "params": {"bits": 4}}
BITS2: Mapping[str, Any] = {"use": "linear-quantise", "params": {"bits": 2}}
PRUNE: Mapping[str, Any] = {"use": "magnitude-prune", "params": {"sparsity": 0.5}}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path / "lab")
    made.prepare()
    return made


@pytest.fixture
def store(lab: Lab) -> SqlStore:
    opened = lab.store()
    opened.begin_run(RunRow("r1", "run", "{}", "0" * 64, "1", "2026-01-01T00:00:00+00:00", "h", 0))
    return opened


FILTERS = np.linspace(-2.0, 1.0, 12 * 9, dtype=np.float32).reshape(12, 1, 3, 3)


def put(
    lab: Lab,
    store: SqlStore,
    name: str,
    *steps: Mapping[str, Any],
    images: np.ndarray[Any, Any] | None = None,
    pixels: int = 784,
    role: str = "compressed",
    coded: bool = False,
) -> Candidate:
    """Put a candidate with every picture into a lab's folder and record."""
    data = name.encode()
    folder = lab.candidates_dir / name
    folder.mkdir()
    (folder / "float.onnx").write_bytes(data)
    x = np.linspace(0, 1, 2 * 784, dtype=np.float32).reshape(2, 1, 28, 28)
    x = x if images is None else images
    spec = TensorSpec("x", "float32", ("batch", *x.shape[1:]))
    out = TensorSpec("y", "float32", ("batch", 3))
    goldens = put_goldens(folder, {"x": x}, {"y": np.zeros((2, 3), np.float32)})
    artifact = Artifact(
        sha256_bytes(data), "onnx", "float", len(data), "float.onnx", 17, 8, "NCHW",
        (spec,), (out,), goldens=goldens,
        coded=Coded("context", "float.onnx.coded", "c" * 64, 3) if coded else None,
    )  # fmt: skip
    put_masks(folder, {"fc1": np.arange(3 * pixels).reshape(3, pixels) % 2 == 0})
    counts = np.arange(64, dtype=np.int64)
    put_pictures(
        folder,
        {
            "layers": np.array(["fc1"]),
            "range:fc1": np.array([-1.0, 1.0]),
            "after:fc1": counts,
            "before:fc1": counts[::-1],
            "zeros:fc1": np.array(1176),
            "codebook:fc1": np.array([-0.5, 0.5], dtype=np.float32),
            "filters:conv1": FILTERS[:7],
            "filters_before:conv1": FILTERS,
        },
    )
    candidate = Candidate(
        candidate_id=candidate_id((artifact,)),
        recipe_id=None if role == "imported" else "ab" * 32,
        recipe={} if role == "imported" else {"steps": [dict(step) for step in steps]},
        name=name,
        workload="" if role == "imported" else "mnist-mini/lenet300",
        seed=0,
        parent=None,
        artifacts=(artifact,),
        params=2352,
        nonzeros=1176,
        macs=2352,
        size_bytes=len(data),
        cost={"train_steps": 1, "cpu_s": 0.5},
        accuracy_host={"validation": 0.9},
        layers=({"name": "fc1", "kind": "fc", "params": 2352, "nonzeros": 1176, "macs": 2352},),
        role=role,
        folder=folder,
        bytes_by_coding={"dense_fp32": 9408, "linear": 900},
        history=tuple({"step": step["use"], "layers": []} for step in steps),
    )
    save(candidate)
    folder.rename(lab.candidates_dir / candidate.candidate_id)
    store.put_candidate(candidate_row(candidate), "r1")
    store.put_artifact(artifact, candidate.candidate_id)
    return candidate


def test_a_folder_tells_pattern_histograms_sizes_and_history(lab: Lab, store: SqlStore) -> None:
    made = put(lab, store, "deep", PRUNE, BITS4)
    masks, survey = survey_of(lab, store, "r1")
    mask = masks[made.candidate_id]
    assert (mask.name, mask.rows, mask.cols, mask.image) == ("fc1", 3, 784, (28, 28))
    kept = survey.of(made.candidate_id)
    assert [entry["step"] for entry in kept.history] == ["magnitude-prune", "linear-quantise"]
    assert kept.bytes_by_coding["linear"] == 900
    (picture,) = kept.weights
    assert (picture.layer, picture.zeros, picture.codebook) == ("fc1", 1176, (-0.5, 0.5))
    assert picture.before == picture.after[::-1] == tuple(range(63, -1, -1))


def test_filters_before_and_after_are_drawn_on_one_scale(lab: Lab, store: SqlStore) -> None:
    made = put(lab, store, "deep", PRUNE)
    filters = survey_of(lab, store, "r1")[1].of(made.candidate_id).filters
    assert filters is not None
    assert filters.before is not None
    assert (filters.layer, filters.filters) == ("conv1", (7, 12))
    before, after = (
        np.frombuffer(one.pixels, np.uint8).reshape(one.height, one.width)
        for one in (filters.before, filters.after)
    )
    assert (before.shape, after.shape) == ((7, 39), (3, 27))
    assert np.array_equal(before[:3, :27], after)
    # White lines between the filters; the least weight is black, and zero is grey.
    assert (before[3] == 255).all()
    assert (before[:, 3] == 255).all()
    assert before[0, 0] == 1
    assert before[4:, 4:7].max() == 128 + round(127 * 0.5)


def test_a_layer_that_reads_no_pixels_has_no_bands(lab: Lab, store: SqlStore) -> None:
    made = put(lab, store, "deep", PRUNE, pixels=50)
    masks, _ = survey_of(lab, store, "r1")
    assert masks[made.candidate_id].image is None


def test_the_image_takes_at_most_two_to_the_bits_levels(lab: Lab, store: SqlStore) -> None:
    put(lab, store, "deep", BITS4)
    put(lab, store, "deeper", BITS2)
    _, survey = survey_of(lab, store, "r1")
    (images,) = survey.images.values()
    assert [image.bits for image in images] == [None, 8, 7, 6, 5, 4, 3, 2, 1]
    for image in images[1:]:
        assert image.bits is not None
        levels = set(image.pixels)
        assert len(levels) <= 2**image.bits
        assert {0, 255} <= levels
        error = max(abs(a - b) for a, b in zip(image.pixels, images[0].pixels, strict=True))
        assert error <= 255 / (2**image.bits - 1) / 2 + 1


@pytest.mark.parametrize(
    ("shape", "said"),
    [((3, 20, 30), (3, 20, 30)), ((4, 20, 30), (1, 20, 30)), ((1, 200, 100), (1, 67, 34))],
)
def test_images_of_other_shapes_are_shown_in_colour_by_their_first_channel_or_thinned_out(
    lab: Lab, store: SqlStore, shape: tuple[int, ...], said: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    put(lab, store, "deep", BITS4, images=x)
    put(lab, store, "deeper", BITS2, images=x)
    _, survey = survey_of(lab, store, "r1")
    image = survey.images["mnist-mini/lenet300"][0]
    assert (image.channels, image.height, image.width) == said


def test_without_several_numbers_of_bits_no_image_is_kept(lab: Lab, store: SqlStore) -> None:
    put(lab, store, "deep", PRUNE)
    put(lab, store, "four", PRUNE, BITS4)
    put(lab, store, "shared", {"use": "share-weights", "params": {"bits": {"conv": 8, "fc": 5}}})
    assert survey_of(lab, store, "r1")[1].images == {}


def test_an_import_and_a_folder_that_is_gone_or_broken_do_no_harm(
    lab: Lab, store: SqlStore
) -> None:
    imported = put(lab, store, "theirs", role="imported")
    gone = put(lab, store, "gone", PRUNE)
    broken = put(lab, store, "broken", BITS4)
    sound = put(lab, store, "sound", BITS4)
    (lab.candidates_dir / gone.candidate_id / "float.onnx").unlink()
    (lab.candidates_dir / broken.candidate_id / "pictures.npz").write_bytes(b"PK")
    masks, survey = survey_of(lab, store, "r1")
    assert set(survey.kept) == {imported.candidate_id, sound.candidate_id}
    assert set(masks) == {sound.candidate_id}


def test_the_page_of_a_run_has_them(lab: Lab, store: SqlStore) -> None:
    put(lab, store, "reference", role="reference")
    put(lab, store, "deep", PRUNE, BITS4)
    put(lab, store, "deeper", PRUNE, BITS2)
    text = report(lab, store, "r1").read_text(encoding="utf-8")
    for part in ("sparsity", "weights", "filters", "bits"):
        assert f'<h2 id="{part}">' in text, part
    assert text.count('<path class="now"') == 1
    assert "1 more network have" not in text
    assert "1 more network" in text

"""What the folders of a run's candidates keep for its page: patterns, histograms, sizes, images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsat.errors import FlatSatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.reports.model import MaskPicture
    from flatsat.reports.model_survey import FiltersPicture, ImageAtBits, Kept, Survey
    from flatsat.reports.rows import Store

_FILTERS_A_ROW = 10
_BITS = (8, 7, 6, 5, 4, 3, 2, 1)
_MOST_PIXELS = 96
"""Longer sides are thinned out: the picture shows levels, not detail."""


def survey_of(lab: Lab, store: Store, run_id: str) -> tuple[dict[str, MaskPicture], Survey]:
    """Return each candidate's sparsity pattern, and what else its folder tells.

    A candidate whose folder is gone or was changed has neither: its measurements stand all the
    same.
    """
    from flatsat.compressors.candidate import load_candidate
    from flatsat.reports.model_survey import Survey

    masks: dict[str, MaskPicture] = {}
    kept: dict[str, Kept] = {}
    found: list[Candidate] = []
    for row in store.candidates(run_id):
        try:
            candidate = load_candidate(lab.candidates_dir / row.candidate_id)
            kept[row.candidate_id] = _kept(candidate)
        except FlatSatError:
            continue
        found.append(candidate)
        mask = _mask(candidate)
        if mask is not None:
            masks[row.candidate_id] = mask
    return masks, Survey(kept, _images(found))


def _kept(candidate: Candidate) -> Kept:
    from flatsat.compressors.pictures import histograms
    from flatsat.reports.model_survey import Kept, WeightsPicture

    coded = {
        artifact.sha256: (artifact.coded.coder, artifact.coded.size_bytes)
        for artifact in candidate.artifacts
        if artifact.coded is not None
    }
    return Kept(
        history=candidate.history,
        bytes_by_coding=dict(candidate.bytes_by_coding),
        coded=coded,
        weights=tuple(WeightsPicture(**vars(one)) for one in histograms(candidate.folder)),
        filters=_filters(candidate),
    )


def _filters(candidate: Candidate) -> FiltersPicture | None:
    """Return the filters of a candidate's first convolution, drawn on one scale."""
    import numpy as np

    from flatsat.compressors.pictures import MOST_FILTERS, first_filters
    from flatsat.reports.model_survey import FiltersPicture

    found = first_filters(candidate.folder)
    if found is None:
        return None
    most = max(float(np.abs(a).max()) for a in (found.after, found.before) if a is not None)
    counts = len(found.after), None if found.before is None else len(found.before)
    return FiltersPicture(
        layer=found.layer,
        after=_sheet(found.after, most),
        before=None if found.before is None else _sheet(found.before, most),
        filters=counts,
        shown=MOST_FILTERS,
    )


def _sheet(filters: np.ndarray[Any, Any], most: float) -> ImageAtBits:
    """Return filters (n, channels, height, width) side by side, white lines between them."""
    import numpy as np

    from flatsat.reports.model_survey import ImageAtBits

    shown = filters if filters.shape[1] in (1, 3) else filters[:, :1]
    count, channels, height, width = shown.shape
    rows = -(-count // _FILTERS_A_ROW)
    across = min(count, _FILTERS_A_ROW)
    sheet = np.full((rows * (height + 1) - 1, across * (width + 1) - 1, channels), 255, np.uint8)
    grey = np.rint(128 + 127 * shown / (most or 1.0)).clip(0, 255).astype(np.uint8)
    for index, one in enumerate(grey):
        top, left = (height + 1) * (index // across), (width + 1) * (index % across)
        sheet[top : top + height, left : left + width] = np.moveaxis(one, 0, -1)
    return ImageAtBits(None, sheet.shape[0], sheet.shape[1], channels, sheet.tobytes())


def _mask(candidate: Candidate) -> MaskPicture | None:
    """Return the sparsity pattern of a candidate's first dense layer, None without one."""
    import numpy as np

    from flatsat.datasets.workload import parse_ref
    from flatsat.reports.model import MaskPicture

    dense = next(((name, m) for name, m in candidate.masks().items() if m.ndim == 2), None)
    if dense is None or not candidate.workload:
        return None
    name, mask = dense
    rows, cols = (int(n) for n in mask.shape)
    height, width = parse_ref(candidate.workload)[0].input.shape[-2:]
    image = (int(height), int(width)) if int(height) * int(width) == cols else None
    return MaskPicture(name, rows, cols, np.packbits(mask).tobytes(), image)


def _images(candidates: Sequence[Candidate]) -> dict[str, tuple[ImageAtBits, ...]]:
    """Return, of workloads with networks of several numbers of bits, an input on as many levels."""
    bits: dict[str, set[int]] = {}
    for candidate in candidates:
        for step in candidate.recipe.get("steps", ()):
            given = step.get("params", {}).get("bits")
            # Some steps take a table of bits by kind of layer: no single picture is of those.
            if isinstance(given, int):
                bits.setdefault(candidate.workload, set()).add(given)
    found: dict[str, tuple[ImageAtBits, ...]] = {}
    for candidate in candidates:
        if candidate.workload in found or len(bits.get(candidate.workload, ())) < 2:
            continue
        golden = _golden_input(candidate)
        if golden is not None:
            found[candidate.workload] = _at_bits(golden)
    return found


def _golden_input(candidate: Candidate) -> np.ndarray[Any, Any] | None:
    """Return the first golden input image of a float file, (channels, height, width)."""
    import numpy as np

    for artifact in candidate.artifacts:
        path = candidate.goldens(artifact)
        if path is None or artifact.role != "float" or not artifact.inputs:
            continue
        with np.load(path, allow_pickle=False) as stored:
            batch: np.ndarray[Any, Any] = stored[f"in:{artifact.inputs[0].name}"]
        if batch.ndim != 4 or not len(batch):
            continue
        image = np.moveaxis(batch[0], -1, 0) if artifact.layout == "NHWC" else batch[0]
        return np.asarray(image, dtype=np.float32)
    return None


def _at_bits(image: np.ndarray[Any, Any]) -> tuple[ImageAtBits, ...]:
    """Return an image as it is and by min/max linear quantisation to 8 ... 1 bits.

    Args:
        image: (channels, height, width); of other numbers of channels than 1 and 3 the first is
            shown.
    """
    import torch

    from flatsat.compressors.linear_quant import quantise_range

    shown = image if image.shape[0] in (1, 3) else image[:1]
    stride = max(1, -(-max(shown.shape[1:]) // _MOST_PIXELS))
    values = torch.from_numpy(shown[:, ::stride, ::stride].copy())
    low, high = float(values.min()), float(values.max())
    return tuple(
        _image(values if bits is None else quantise_range(values, bits).values, low, high, bits)
        for bits in (None, *_BITS)
    )


def _image(values: Any, low: float, high: float, bits: int | None) -> ImageAtBits:
    from flatsat.reports.model_survey import ImageAtBits

    scaled = (values.double() - low) / ((high - low) or 1.0)
    pixels = (255 * scaled).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    height, width, channels = pixels.shape
    return ImageAtBits(bits, height, width, channels, pixels.numpy().tobytes())

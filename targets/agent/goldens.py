"""Outputs on the board against the goldens, by the agreement policy of the job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Sequence, Set, Tuple

import numpy as np

from .faults import AgentFault
from .inputs import TensorInfo, is_batch_axis, resolve

if TYPE_CHECKING:
    from .runtimes import Model

_BYTES_PER_CALL = 256 << 10
"""Goldens of an open batch axis go through together up to so many bytes of input (and 32 rows):
few enough to leave the process's peak memory alone."""
_ROWS_PER_CALL = 32


def check_goldens(model: Model, path: str, spec: Mapping[str, Any]) -> Dict[str, Any]:
    """Run the golden inputs of an `.npz` and return an AgreementResult as JSON.

    Raises:
        AgentFault: (candidate, "disagrees") the policy is broken, with the figures as evidence;
            (config, "goldens") the file doesn't fit the model.
    """
    feeds, expected = _read(model, path)
    policy = spec["agreement"]
    if policy is None:
        raise AgentFault("config", "agreement", "there are goldens, but no agreement policy")
    outputs = run_rows(model, feeds, spec, by_bytes=True)
    result = compare(outputs, [expected[info.name] for info in model.outputs], policy)
    if not result["ok"]:
        fault = AgentFault(
            "candidate",
            "disagrees",
            "outputs differ from the goldens: max |d| %.3g, of max |ref| %.3g, top-1 %.4f of %d"
            % (result["max_abs"], result["max_rel"], result["top1_agree"], result["n"]),
            "fast and wrong fails: check the lowering, or the policy",
        )
        fault.evidence["agreement"] = result
        raise fault
    return result


def _read(model: Model, path: str) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    arrays = read_arrays(path, "goldens")
    feeds = {}
    for info in model.inputs:
        if "in:" + info.name not in arrays:
            raise AgentFault("config", "goldens", "the goldens have no input %r" % info.name)
        feeds[info.name] = arrays["in:" + info.name].astype(info.dtype, copy=False)
    expected = {}
    for info in model.outputs:
        if "out:" + info.name not in arrays:
            raise AgentFault("config", "goldens", "the goldens have no output %r" % info.name)
        expected[info.name] = arrays["out:" + info.name]
    return feeds, expected


def read_arrays(path: str, what: str) -> Dict[str, Any]:
    """Return the arrays of an `.npz` by name.

    Raises:
        AgentFault: (config, `what`) the file is none, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except MemoryError:
        raise
    except Exception as error:
        raise AgentFault("config", what, "can't read the %s: %s" % (what, error)) from error


def run_rows(
    model: Model, feeds: Mapping[str, Any], spec: Mapping[str, Any], by_bytes: bool = False
) -> List[Any]:
    """Run arrays whose first axis counts examples, in pieces of the model's batch.

    A last piece that is too short for a fixed batch is filled by repeating its last row, and cut
    again. Without a batch axis the arrays go through in one call.

    Args:
        model: loaded.
        feeds: by input name.
        spec: the job; its `batch` and `axes` set open axes.
        by_bytes: let an open batch axis take more rows than `batch`, within bounds.

    Returns:
        The outputs in order, each with as many rows as the inputs.
    """
    split = [info for info in model.inputs if _counts_examples(info, feeds[info.name])]
    if not split:
        return model.run(feeds)
    lengths = {len(feeds[info.name]) for info in split}
    if len(lengths) != 1:
        raise AgentFault("config", "data-set", "inputs have different numbers of examples")
    (rows,) = lengths
    step = resolve(split[0], spec["batch"], spec["axes"])[0]
    is_open = is_batch_axis(split[0])
    if by_bytes and is_open:
        row_bytes = max(1, sum(int(feeds[info.name].nbytes) for info in split) // max(1, rows))
        step = max(step, min(_ROWS_PER_CALL, _BYTES_PER_CALL // row_bytes))
    names = {info.name for info in split}
    pieces = [model.run(piece) for piece in _pieces(feeds, names, rows, step, pad=not is_open)]
    return [
        np.concatenate([np.atleast_1d(part) for part in parts])[:rows] for parts in zip(*pieces)
    ]


def _counts_examples(info: TensorInfo, array: Any) -> bool:
    """Return whether the array's first axis is to be cut into the model's batches."""
    if not info.shape or not array.ndim:
        return False
    return is_batch_axis(info) or (isinstance(info.shape[0], int) and len(array) != info.shape[0])


def _pieces(
    feeds: Mapping[str, Any], names: Set[str], rows: int, step: int, pad: bool
) -> Iterator[Dict[str, Any]]:
    for start in range(0, rows, step):
        piece = dict(feeds)
        short = start + step - rows
        for name in names:
            piece[name] = feeds[name][start : start + step]
            if pad and short > 0:
                piece[name] = np.concatenate(
                    [piece[name], np.repeat(piece[name][-1:], short, axis=0)]
                )
        yield piece


def compare(
    outputs: Sequence[Any], expected: Sequence[Any], policy: Mapping[str, Any]
) -> Dict[str, Any]:
    """Return how far `outputs` lie from `expected`, and whether `policy` allows it.

    Figures that are not finite (an output is NaN where the reference is a number) are given as the
    largest double, since JSON knows no infinity; they never pass.
    """
    deviations = []
    max_rel = 0.0
    same_bytes = True
    for got, ref in zip(outputs, expected):
        if got.shape != ref.shape:
            raise AgentFault(
                "config",
                "goldens",
                "an output has shape %r, its goldens %r" % (got.shape, ref.shape),
            )
        same_bytes = same_bytes and got.dtype == ref.dtype and got.tobytes() == ref.tobytes()
        wide_got, wide_ref = got.astype(np.float64), ref.astype(np.float64)
        equal = (wide_got == wide_ref) | (np.isnan(wide_got) & np.isnan(wide_ref))
        with np.errstate(invalid="ignore"):
            deviation = np.where(equal, 0.0, np.abs(wide_got - wide_ref)).ravel()
        deviations.append(np.nan_to_num(deviation, nan=np.inf, posinf=np.inf))
        finite = np.abs(wide_ref[np.isfinite(wide_ref)])
        scale = float(finite.max()) if finite.size else 0.0
        worst = float(deviations[-1].max()) if deviation.size else 0.0
        max_rel = max(max_rel, 0.0 if worst == 0.0 else worst / scale if scale else float("inf"))
    every = np.concatenate(deviations) if deviations else np.zeros(1)
    rows = len(expected[0]) if expected and expected[0].ndim else 1
    result = {
        "kind": policy["kind"],
        "max_abs": float(every.max()) if every.size else 0.0,
        "max_rel": max_rel,
        "p99_abs": float(np.quantile(every, 0.99, **_HIGHER)) if every.size else 0.0,
        "top1_agree": _top1(outputs, expected),
        "n": rows,
    }
    result["ok"] = same_bytes if policy["kind"] == "bit" else _within(result, policy)
    largest = float(np.finfo(np.float64).max)
    for key in ("max_abs", "max_rel", "p99_abs"):
        result[key] = min(result[key], largest)
    return result


# The argument's name changed in NumPy 1.22.
_HIGHER: Dict[str, Any] = (
    {"interpolation": "higher"}
    if tuple(int(part) for part in np.__version__.split(".")[:2]) < (1, 22)
    else {"method": "higher"}
)


def _top1(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    if not outputs or not outputs[0].ndim or not outputs[0].size:
        return 1.0
    got, ref = outputs[0], expected[0]
    # Classes lie on the axis behind the examples, for images as for vectors.
    axis = 1 if ref.ndim > 1 else 0
    agree = np.argmax(got, axis=axis) == np.argmax(ref, axis=axis)
    return float(np.mean(agree))


def _within(result: Mapping[str, Any], policy: Mapping[str, Any]) -> bool:
    try:
        if policy["kind"] == "tol":
            return bool(result["max_rel"] <= policy["max_rel"])
        if policy["kind"] == "decision":
            return bool(
                result["p99_abs"] <= policy["p99_quanta"] * policy["quantum"]
                and result["top1_agree"] >= policy["top1"]
            )
    except KeyError as error:
        raise AgentFault("config", "agreement", "the policy lacks %s" % error) from error
    raise AgentFault("config", "agreement", "no agreement policy is called %r" % policy["kind"])

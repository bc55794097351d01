"""FlatSat from Python: what a notebook or another program calls.

from flatsat import load_run, measure

result = measure("model.onnx", threads=2)
result.latency_ns.p50
load_run("last").groupby("candidate").p50_ns.median()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flatsat.errors import UsageError
from flatsat.harness.compare import ROUNDS, CompareRequest, CompareResult
from flatsat.harness.compare import compare as _compare
from flatsat.harness.config import choose_recipes, load_lab_boards
from flatsat.harness.config import load_run as _load_run_file
from flatsat.harness.lab import Lab, default_root
from flatsat.harness.measure import MeasureRequest, measure_model
from flatsat.harness.measure_result import LatencySummary, MeasureResult, MemorySummary
from flatsat.harness.records import find_run, open_record
from flatsat.harness.run import RunResult, build_all, start_run
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    import pandas as pd

    from flatsat.compressors.candidate import Candidate

_T = TypeVar("_T")

__all__ = [
    "CompareResult",
    "LatencySummary",
    "MeasureResult",
    "MemorySummary",
    "compare",
    "compress",
    "load_run",
    "measure",
    "open_lab",
    "run",
]


def open_lab(folder: str | Path | None = None) -> Lab:
    """Return a lab: its record, its candidates, its boards.

    Args:
        folder: None takes the environment variable FLATSAT_LAB, or `./lab`.

    Raises:
        ConfigError: its `lab.toml` is wrong.
    """
    root = default_root() if folder is None else Path(folder)
    return Lab(root, load_lab_boards(root))


def measure(
    model: str | Path,
    board: str = "host",
    *,
    lab: str | Path | None = None,
    role: str | None = None,
    runtime: str | None = None,
    threads: int = 1,
    affinity: tuple[int, ...] = (),
    batch: int = 1,
    axes: Mapping[str, int] | None = None,
    processes: int | None = None,
    min_inferences: int | None = None,
    min_s: float | None = None,
    progress: Progress | None = None,
) -> MeasureResult:
    """Measure one model on one board and keep the measurement in the lab's record.

    What the model does wrong on the board becomes the result's `status` and `fault`, not an error.

    Args:
        model: an ONNX or TFLite file; or a candidate's folder, identifier, start of one, or name.
        board: name.
        lab: folder; see `open_lab`.
        role: of the artifact, where a candidate has several, such as "int8".
        runtime: what executes the model; None takes the default of its format.
        threads: intra-op threads.
        affinity: CPU numbers to pin to; () leaves the processes free.
        batch: length of a first axis that counts examples and is open.
        axes: lengths of other open axes by name.
        processes: fresh processes; None, here and below, for the default of the board's clock.
        min_inferences: each process counts at least so many inferences *and* ...
        min_s: ... so many seconds of them.
        progress: is told what goes on.

    Raises:
        ModelError: the file is corrupt or of another kind, or an open axis has no length.
        UsageError: no such file, candidate, board, axis or role; or several artifacts fit.
        InfrastructureError: the board or the record failed.
    """
    asked: dict[str, int | float | None] = {
        "processes": processes,
        "min_inferences": min_inferences,
        "min_s": min_s,
    }
    request = MeasureRequest(
        model=str(model),
        board=board,
        role=role,
        runtime=runtime,
        threads=threads,
        affinity=tuple(affinity),
        batch=batch,
        axes=dict(axes or {}),
        overrides={key: value for key, value in asked.items() if value is not None},
    )
    opened = open_lab(lab)
    return _apart(lambda: measure_model(opened, request, progress=progress, several=False)[0])


def compare(
    *names: str,
    board: str = "host",
    lab: str | Path | None = None,
    within: float = 0.02,
    margin: float = 0.005,
    rounds: int = ROUNDS,
    threads: int = 1,
    recorded: bool = False,
    progress: Progress | None = None,
) -> CompareResult:
    """Hold candidates or runs against the first of them; `result.report.rows` has the verdicts.

    Args:
        names: the baseline first: candidates (perhaps NAME:ROLE), or runs.
        board: where candidates are measured, interleaved in rounds.
        lab: folder; see `open_lab`.
        within: relative difference of latency that still counts as equal.
        margin: loss of accuracy that still counts as none, in (0, 1).
        rounds: interleaved rounds.
        threads: intra-op threads.
        recorded: measure nothing; take what the record holds.
        progress: is told what goes on.

    Raises:
        UsageError: fewer than two names, one that is unknown, or candidates beside runs.
        InfrastructureError: the board or the record failed.
    """
    request = CompareRequest(
        names=names,
        board=board,
        threads=threads,
        rounds=rounds,
        threshold=within,
        margin=margin,
        recorded=recorded,
    )
    opened = open_lab(lab)
    return _apart(lambda: _compare(opened, request, progress=progress))


def compress(
    recipe_file: str | Path,
    name: str | None = None,
    *,
    seed: int | None = None,
    lab: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Candidate]:
    """Build the candidates of a file of recipes; those built before are not built again.

    Args:
        recipe_file: TOML.
        name: one recipe of it; None takes all.
        seed: one seed instead of those of the recipes.
        lab: folder; see `open_lab`.
        progress: is told what goes on.

    Raises:
        ConfigError: the file is wrong, or holds no such recipe.
        UsageError: a recipe can't be applied; the message says why.
    """
    specs = choose_recipes(Path(recipe_file), name, seed)
    opened = open_lab(lab)
    opened.prepare()
    candidates, unbuilt = build_all(opened, specs, progress or NoProgress())
    for label, why in unbuilt.items():
        raise UsageError(f"{label}: {why}")
    return candidates


def run(
    config: str | Path, *, lab: str | Path | None = None, progress: Progress | None = None
) -> RunResult:
    """Run a configuration to its end, as `flatsat run` does.

    Raises:
        ConfigError: the configuration is wrong.
        InfrastructureError: the record can't be written.
    """
    loaded, opened = _load_run_file(Path(config)), open_lab(lab)
    return _apart(lambda: start_run(loaded, opened, progress=progress))


def _apart(work: Callable[[], _T]) -> _T:
    """Do work that runs an event loop; in a thread where one runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def load_run(
    run: str | Path = "last", lab: str | Path | None = None, *, samples: bool = False
) -> pd.DataFrame:
    """Return a run's outcomes as a table: one row a job, or with `samples` one a latency.

    Args:
        run: identifier, the start of one, "last", or the run's folder (`LAB/runs/RUN`).
        lab: folder; see `open_lab`. A run's folder knows its lab.
        samples: one row an inference, warm-up included.

    Returns:
        One row a job: "run_id", "candidate", "candidate_id", "role", "workload", "seed",
        "params", "nonzeros", "macs", "artifact", "precision", "size_bytes", "board", "board_id",
        "kind", "runtime", "threads", "batch", "round", "status", "fault", "message",
        "clock", "n", "processes", "min_ns", "mean_ns", "p10_ns", "p50_ns", "p90_ns", "p99_ns",
        "peak_rss_bytes", "agreement_ok", "accuracy", "accuracy_n", "started_utc", "wall_s". What
        a job doesn't have is missing. With `samples`: "candidate", "candidate_id", "precision",
        "board", "threads", "round", "process", "warm", "index", "latency_ns", "clock".

    Raises:
        UsageError: no such run, or no record.
    """
    from flatsat.harness.frames import outcomes_frame, samples_frame

    folder = Path(run)
    if folder.is_dir() and folder.parent.name == "runs":
        opened = open_lab(folder.parent.parent if lab is None else lab)
        wanted = folder.name
    else:
        opened, wanted = open_lab(lab), str(run)
    store = open_record(opened)
    run_id = find_run(store, wanted).run_id
    return samples_frame(store, run_id) if samples else outcomes_frame(store, run_id)

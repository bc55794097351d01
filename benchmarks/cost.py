"""What a measurement costs beside its inferences, and 1-ms candidates a minute beside Apache TVM.

FlatSat goes its whole way: jobs planned and recorded, files put on the board, a fresh process for
each candidate, samples in the record, the status pages rewritten; only making and importing the
models beforehand isn't counted. TVM's default RPC runner (tvm_runner.py, in a virtual environment
of its own) is given a ready-built kernel; its imports, tracker, server and first candidate aren't
counted. Blocks of the arms are interleaved in an order that is drawn; a round in which more
processes were runnable than there are cores is thrown away and done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import models
import numpy as np
import results

from flatsat.compressors.importing import import_model
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, end_run, measure_candidates
from flatsat.jobspec import MeasurePlan
from flatsat.outcome import Measured
from flatsat.reports.stats import mean_log_ratio

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate

TVM = "apache-tvm[rpc]==0.27.0.post1"
TVM_MB = 420
COUNTED_S = 0.1
LONG_S, LONG_CANDIDATES = 1.0, 4
ISOLATIONS = ("fork", "spawn")
BUSY_SHARE = 0.1
"""A block is refused when in more than this share of looks too many processes were runnable."""
LOOK_S = 0.1


@dataclass(frozen=True)
class Block:
    """Candidates measured in one go.

    Attributes:
        candidates: how many.
        seconds: of wall time for all of them.
        counted_s, warmup_s: inside inferences, of the window and of the warm-up; 0 if not told.
        mean_ms: mean time of one inference, over the candidates.
        busy: share of looks with more processes runnable than cores.
    """

    candidates: int
    seconds: float
    counted_s: float
    warmup_s: float
    mean_ms: float
    busy: float

    @property
    def per_minute(self) -> float:
        """Candidates a minute."""
        return 60 * self.candidates / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=30, help="in each block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tvm-python", type=Path, help="an interpreter that has apache-tvm[rpc]")
    parser.add_argument("--tvm-dir", type=Path, default=Path("lab/benchmarks/tvm-venv"))
    parser.add_argument("--tvm-runner", choices=("rpc", "local"), default="rpc")
    parser.add_argument("--no-tvm", action="store_true", help="FlatSat alone")
    parser.add_argument("--busy", action="store_true", help="keep busy rounds; says so")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    tvms: dict[str, Tvm] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not arguments.no_tvm:
                python = arguments.tvm_python or tvm_python(arguments.tvm_dir)
                for artifact in ("so", "tar"):
                    tvms[f"TVM .{artifact}"] = Tvm(python, arguments.tvm_runner, artifact)
            rounds, refused = measure(Path(folder), arguments, tvms)
        finally:
            for tvm in tvms.values():
                tvm.close()
    write(rounds, refused, arguments, {name: tvm.about for name, tvm in tvms.items()})


def measure(
    folder: Path, arguments: argparse.Namespace, tvms: dict[str, Tvm]
) -> tuple[list[dict[str, Block]], int]:
    """Return per round a block of each arm, and how many rounds were refused."""
    lab = Lab(folder / "lab")
    lab.prepare()
    flatsat = {f"FlatSat {isolation}": (isolation, COUNTED_S) for isolation in ISOLATIONS}
    flatsat |= {f"FlatSat {isolation}, 1 s": (isolation, LONG_S) for isolation in ISOLATIONS}
    draw = np.random.default_rng(0)
    found: list[dict[str, Block]] = []
    refused, seed = 0, 0
    while len(found) < arguments.rounds:
        blocks: dict[str, Block] = {}
        ready: dict[str, list[Candidate]] = {}
        for name, (_, window_s) in flatsat.items():
            count = arguments.candidates if window_s == COUNTED_S else LONG_CANDIDATES
            ready[name] = candidates(lab, folder, range(seed, seed + count))
            seed += count
        for arm in draw.permutation([*flatsat, *tvms]):
            name = str(arm)
            if name in tvms:
                blocks[name] = tvms[name].block(arguments.candidates)
            else:
                blocks[name] = flatsat_block(lab, ready[name], *flatsat[name])
        busiest = max(block.busy for block in blocks.values())
        if busiest > BUSY_SHARE and not arguments.busy:
            refused += 1
            if refused > max(3, arguments.rounds):
                sys.exit(
                    f"more processes runnable than {os.cpu_count()} cores in {busiest:.0%} of looks"
                    ": no verdict"
                )
            continue
        found.append(blocks)
        told = ", ".join(f"{name} {block.per_minute:.0f}/min" for name, block in blocks.items())
        print(f"round {len(found)}: {told}; {refused} refused", file=sys.stderr)
    return found, refused


def candidates(lab: Lab, folder: Path, seeds: range) -> list[Candidate]:
    """Import models that differ in their weights: each is put on the board once, and counted."""
    made = []
    for seed in seeds:
        path = models.convolutions(folder / "model.onnx", layers=6, channels=32, size=28, seed=seed)
        made.append(import_model(path, None, lab.candidates_dir, name=f"weights-{seed}"))
    return made


def flatsat_block(lab: Lab, ready: list[Candidate], isolation: str, window_s: float) -> Block:
    store = lab.store()
    run_id = begin_run(lab, store, kind="measure", config={"isolation": isolation}, seed=0)
    plan = MeasurePlan(processes=1, min_inferences=1, min_s=window_s, isolation=isolation)
    settings = Settings(plan=plan, rounds=1, comparison=isolation)
    with Looks() as looks:
        begin = time.perf_counter()
        rows = measure_candidates(lab, run_id, ready, boards=["host"], settings=settings)
        seconds = time.perf_counter() - begin
    end_run(lab, store, run_id, "done")
    counted, warmup, means = 0.0, 0.0, []
    for row in rows:
        assert isinstance(row.outcome, Measured), row.outcome
        for samples in row.outcome.samples:
            if samples.quantity == "latency_ns" and samples.warm:
                counted += sum(samples.values) / 1e9
                means.append(float(np.mean(samples.values)) / 1e6)
            elif samples.quantity == "latency_ns":
                warmup += sum(samples.values) / 1e9
    assert len(means) == len(ready)
    return Block(len(ready), seconds, counted, warmup, float(np.mean(means)), looks.busy)


class Looks:
    """Looks now and then, beside a block, how many processes are runnable."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._seen: list[int] = []
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            runnable = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
            self._seen.append(int(runnable) - 1)  # The one that looks is running, too.

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def busy(self) -> float:
        """Share of looks at which more were runnable than there are cores."""
        cores = os.cpu_count() or 1
        return float(np.mean([seen > cores for seen in self._seen])) if self._seen else 0.0


class Tvm:
    """tvm_runner.py under TVM's interpreter, started once and kept."""

    def __init__(self, python: Path, runner: str, artifact: str) -> None:
        script = Path(__file__).with_name("tvm_runner.py")
        self._process = subprocess.Popen(
            [python, script, "--runner", runner, "--artifact", artifact],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.about: dict[str, Any] = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(
                f"TVM's runner ended with code {self._process.wait()}; run it by hand to see why:\n"
                f"  echo 1 | {' '.join(map(str, self._process.args))}"  # type: ignore[arg-type]
            )
        answer: dict[str, Any] = json.loads(line)
        errors = answer.get("errors") or answer.get("warm", {}).get("errors")
        if errors:
            sys.exit(f"TVM's runner failed ({len(errors)} candidates): {errors[0]}")
        return answer

    def block(self, count: int) -> Block:
        """Run the kernel as so many candidates."""
        assert self._process.stdin is not None
        with Looks() as looks:
            self._process.stdin.write(f"{count}\n")
            answer = self._answer()
        mean_ms = float(np.mean(answer["mean_ms"]))
        return Block(count, float(answer["seconds"]), 0.0, 0.0, mean_ms, looks.busy)

    def close(self) -> None:
        """End it and what it started, by the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def tvm_python(folder: Path) -> Path:
    """Return the interpreter of TVM's own environment, made at first need."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"making {folder} for {TVM} ({TVM_MB} MB)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", TVM], check=True)
        (folder / "complete").touch()
    return python


def write(
    rounds: list[dict[str, Block]],
    refused: int,
    arguments: argparse.Namespace,
    about: dict[str, dict[str, Any]],
) -> None:
    rows = []
    for name in sorted(rounds[0]):
        blocks = [blocks[name] for blocks in rounds]
        rates = [block.per_minute for block in blocks]
        seconds = sum(block.seconds for block in blocks)
        counted = sum(block.counted_s for block in blocks)
        warmup = sum(block.warmup_s for block in blocks)
        rows.append(
            (
                name,
                f"{LONG_S if '1 s' in name else COUNTED_S:g}",
                sum(block.candidates for block in blocks),
                f"{np.mean([block.mean_ms for block in blocks]):.2f}",
                f"{np.exp(np.mean(np.log(rates))):.0f} ({min(rates):.0f} to {max(rates):.0f})",
                *(_ratio(rounds, name, other) for other in sorted(about)),
                f"{100 * counted / seconds:.0f}" if counted else "",
                f"{100 * (counted + warmup) / seconds:.0f}" if counted else "",
            )
        )
    notes = [
        f"Geometric mean over {len(rounds)} rounds with its range; ratios are paired by round, with"
        " a 95 % t interval. Wanted: at least 2.",
        f"{refused} rounds were refused because more processes were runnable than there are cores.",
        "FlatSat: one process a candidate, warm-up to its steady-state test, every sample recorded;"
        " opening the board, putting the file there and rewriting the status pages are counted.",
    ]
    for name, told in about.items():
        notes.append(
            f"{name}: {told['runner']} runner of apache-tvm {told['tvm']}, default"
            f" EvaluatorConfig {told['evaluator']}, {told['kernel']}; one warm-up call, one mean a"
            " candidate."
        )
    if about:
        notes.append(
            "A .so is ready to load; a .tar, which TVM's builder leaves by default, is linked by"
            " the server for each candidate."
        )
    if arguments.busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    results.write(
        "cost",
        "Cost: what a measurement takes beside its inferences",
        "Candidates of about 1 ms a minute through FlatSat's whole path, beside Apache TVM's"
        f" {arguments.tvm_runner} runner in the same run, blocks interleaved; and the share of wall"
        " time inside inferences.",
        (
            "arm",
            "counted, s",
            "candidates",
            "inference, ms",
            "candidates a minute",
            *(f"times {other}" for other in sorted(about)),
            "inside counted inferences, %",
            "with warm-up, %",
        ),
        rows,
        notes=notes,
        data={"rounds": [{n: vars(b) for n, b in blocks.items()} for blocks in rounds]},
    )


def _ratio(rounds: list[dict[str, Block]], name: str, other: str) -> str:
    if name == other or "1 s" in name:
        return ""
    top = [blocks[name].per_minute for blocks in rounds]
    bottom = [blocks[other].per_minute for blocks in rounds]
    found = mean_log_ratio(top, bottom)
    assert found is not None
    if found.low is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    main()

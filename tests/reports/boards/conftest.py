"""A record of a run on boards of both clocks, filled the way a run does, without any board.

`python tests/reports/boards/conftest.py FILE.html` renders it: a look at the page.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec, MeasurePlan
from flatsat.outcome import AgreementResult, Health, Measured, Outcome, Samples
from flatsat.reports.collect import collect
from flatsat.reports.pages import render_run, run_html
from flatsat.reports.rows import AccuracyRow, CandidateRow, JobRow, RunRow
from flatsat.reports.store import SqlStore
from flatsat.runtimes import default_provider
from flatsat.tensors import TensorSpec

AT = "2026-11-24T23:11:00+00:00"
WORKLOAD = "fashion/cnn"
IMAGES = 1000
TICK_NS = 16
"""The emulated board's counter runs at 62.5 MHz."""
FORMATS = {"onnxruntime": "onnx", "litert": "tflite", "tflite-runtime": "tflite"}
BOARDS = {
    "host": ("host", "wall", {"cpu_model": "AMD EPYC 7B13", "cores": 2}),
    "qemu-arm64": ("qemu-arm64", "virtual", {}),
    "qemu-arm64-a76": ("qemu-arm64", "virtual", {}),
    "qemu-arm64-third": ("qemu-arm64", "virtual", {}),
    "qemu-plain": ("qemu-arm64", "wall", {}),
    "bench": ("linux", "wall", {"cpu_model": "Cortex-A72", "cores": 4}),
}
CPUS = {
    "qemu-arm64-third": "cortex-a53",
    "qemu-arm64": "cortex-a72",
    "qemu-arm64-a76": "cortex-a76",
    "qemu-plain": "cortex-a72",
}
PEAKS = {
    "host": (("float32", 38.0), ("int8", 95.0)),
    "qemu-arm64": (("float32", 1.9), ("int8", 2.4)),
    "qemu-arm64-a76": (("float32", 1.9), ("int8", 7.6)),
}


@dataclass(frozen=True)
class Net:
    """A network; virtual milliseconds in float, and in int8 on the first board and the second."""

    name: str
    role: str
    macs: int
    params: int
    float_ms: float
    int8_ms: tuple[float, float] | None = None
    wrong: int = 90


NETS = (
    Net("cnn", "reference", 38_400_000, 94_000, 31.57, (25.93, 9.74), 88),
    Net("cnn-filters", "compressed", 12_100_000, 31_000, 11.24, (9.91, 4.13), 91),
    Net("cnn-small", "compressed", 3_100_000, 9_100, 3.98, (4.61, 2.21), 97),
    Net("cnn-tiny", "compressed", 610_000, 2_300, 0.646, (1.195, 1.061), 160),
    Net("cnn-magnitude", "compressed", 38_400_000, 94_000, 31.57, None, 90),
    Net("cnn-narrow", "equal-macs", 12_400_000, 32_500, 10.96, None, 99),
)


def sha(name: str) -> str:
    return sha256_bytes(name.encode())


def artifact_sha(net: str, precision: str, format_: str = "onnx") -> str:
    return sha(f"{net} {precision} {format_}")


class Record:
    """Fills a record."""

    def __init__(self, url: str) -> None:
        self.store = SqlStore(url)
        self.rng = np.random.default_rng(3)
        self.count = 0
        self.begin("r1")

    def begin(self, run_id: str) -> None:
        """Begin a run; what follows is recorded for it."""
        self.run_id = run_id
        text = canonical_json({"file": {"run": {"name": "boards", "seed": 7}}})
        self.store.begin_run(RunRow(run_id, "run", text, sha(text), "0.1.0", AT, "fp", 7))

    def board(self, name: str, **more: object) -> None:
        kind, clock, facts = BOARDS[name]
        if kind == "qemu-arm64":
            emulator = {"machine": "virt", "cpu": CPUS[name], "clock": clock, "shift": 1}
            facts = {
                "cpu_model": "0x41 0xd08 3",
                "cores": 1,
                "memory_bytes": 505_000_000,
                "kernel": "6.1.0-56-cloud-arm64",
                "qemu_version": "7.2.22",
                "emulator": {**emulator, "memory_mb": 512, "smp": 1},
            }
        self.store.put_board(f"id-{name}", name, kind, {**facts, **more})

    def candidate(
        self, net: Net, formats: tuple[str, ...] = ("onnx",), workload: str = WORKLOAD
    ) -> None:
        layers = [
            {"name": f"conv{i}", "kind": "conv", "params": net.params // 4, "macs": net.macs // 4,
             "nonzeros": net.params // 4, "in_shape": [16, 28, 28], "out_shape": [16, 28, 28]}
            for i in range(4)
        ]  # fmt: skip
        row = CandidateRow(
            sha(net.name), None, net.name, net.role, workload, 0, None,
            net.params, net.params, net.macs, {"train_steps": 700.0}, {"validation": 0.9}, layers,
        )  # fmt: skip
        self.store.put_candidate(row, self.run_id)
        for format_ in formats:
            for precision in ("float", "int8") if net.int8_ms else ("float",):
                dtype = "int8" if (format_, precision) == ("tflite", "int8") else "float32"
                spec = TensorSpec("image", dtype, ("batch", 1, 28, 28))
                out = TensorSpec("logits", dtype, ("batch", 10))
                mine = artifact_sha(net.name, precision, format_)
                source = artifact_sha(net.name, "float", format_) if precision == "int8" else None
                size = net.params * (4 if precision == "float" else 1) + 3000
                self.store.put_artifact(
                    Artifact(mine, format_, precision, size, f"{mine}.{format_}", 17, 8, "NCHW",
                             (spec,), (out,), source),
                    row.candidate_id,
                )  # fmt: skip

    def put(
        self,
        kind: JobKind,
        board: str,
        artifact: str,
        outcome: Outcome,
        *,
        at: str = AT,
        index: int = 0,
        accuracy: AccuracyRow | None = None,
        runtime: str = "onnxruntime",
        isolation: str = "spawn",
        **spec: object,
    ) -> None:
        """Record a job and its outcome."""
        self.count += 1
        job_id = f"j{self.count}"
        virtual = BOARDS[board][1] == "virtual"
        plan = VIRTUAL_PLAN if virtual else MeasurePlan(processes=2)
        plan = replace(plan, isolation=isolation)
        value = JobSpec(
            kind, artifact, FORMATS[runtime], board, runtime, plan=plan,
            provider=default_provider(runtime), **spec,
        )  # fmt: skip
        text = canonical_json(value.to_json())
        row = JobRow(job_id, artifact, board, kind.value, text, index, self.count, "run")
        self.store.add_jobs(self.run_id, [row])
        self.store.start_job(job_id, f"id-{board}")
        self.store.put_outcome(job_id, f"id-{board}", outcome, at, 1.0, accuracy)

    def latency(
        self,
        net: str,
        ms: float,
        board: str,
        *,
        precision: str = "float",
        runtime: str = "onnxruntime",
        jitter: tuple[int, ...] = (0, 0, 1),
        rounds: int = 2,
        isolation: str = "spawn",
        kind: JobKind = JobKind.LATENCY,
        **spec: object,
    ) -> None:
        """Record `rounds` jobs; on a virtual clock values differ by the ticks of `jitter` only."""
        clock = BOARDS[board][1]
        plain = clock == "wall"
        for index in range(rounds):
            samples: list[Samples] = []
            for process in range(2 if plain else 1):
                if plain:
                    level = ms * 1e6 * np.exp(self.rng.normal(0, 0.004))
                    values = (level * (1 + self.rng.gamma(1, 0.01, 120))).astype(int).tolist()
                else:
                    ticks = round(ms * 1e6 / TICK_NS) + index * (jitter[-1] if jitter else 0)
                    values = [TICK_NS * (ticks + jitter[i % len(jitter)]) for i in range(12)]
                samples += [
                    Samples("latency_ns", clock, process, True, tuple(values)),
                    Samples("load_ns", clock, process, True, (9_000_000,)),
                    Samples("rss_bytes", "ru_maxrss", process, True, (60_000_000 + process,)),
                ]
            evidence = {
                "runtime": {"name": runtime, "version": "1.32.0"},
                "processes": [{"steady": True}] * (2 if plain else 0),
            }
            agreement = AgreementResult("tol", 1e-6, 1e-7, 1e-7, 1.0, 32, True)
            health = (Health("before", load1=0.2), Health("after", load1=1.4))
            outcome = Measured(tuple(samples), agreement, None, health, evidence)
            artifact = artifact_sha(net, precision, FORMATS[runtime])
            self.put(kind, board, artifact, outcome, index=index, runtime=runtime,
                     isolation=isolation, **spec)  # fmt: skip

    def shares_float(self, name: str, other: str) -> None:
        """Record a candidate with an int8 file alone, lowered from another's float file."""
        row = CandidateRow(sha(name), None, name, "compressed", WORKLOAD, 0, None, 94_000, 94_000)
        self.store.put_candidate(row, self.run_id)
        mine, source = artifact_sha(name, "int8"), artifact_sha(other, "float")
        spec = TensorSpec("image", "float32", ("batch", 1, 28, 28))
        self.store.put_artifact(
            Artifact(mine, "onnx", "int8", 97_000, "m.onnx", 17, 8, "", (spec,), (spec,), source),
            row.candidate_id,
        )

    def named(
        self,
        name: str,
        formats: tuple[str, ...] = ("onnx",),
        *,
        called: str = "",
        workload: str = WORKLOAD,
    ) -> None:
        """Record one of `NETS`, perhaps under another name."""
        net = next(net for net in NETS if net.name == name)
        self.candidate(replace(net, name=called or name), formats, workload)

    def small(self, *boards: str, jitter: tuple[int, ...] = (0, 0, 1)) -> None:
        """Record three files of two networks on boards."""
        for net in NETS[:2]:
            self.candidate(net)
        for board in boards:
            self.board(board)
            for net, ms, precision in (
                ("cnn", 31.6, "float"),
                ("cnn", 25.9, "int8"),
                ("cnn-filters", 11.2, "float"),
            ):
                self.latency(net, ms, board, precision=precision, jitter=jitter)

    def accuracy(self, net: str, wrong: int, board: str, precision: str = "float") -> None:
        correct = tuple(i >= wrong for i in range(IMAGES))
        row = AccuracyRow(sha("test"), "accuracy", IMAGES, sum(correct) / IMAGES, correct)
        self.put(JobKind.ACCURACY, board, artifact_sha(net, precision), Measured(()), accuracy=row)

    def energy(
        self, net: str, instructions: int, board: str, precision: str = "float", **spec: object
    ) -> None:
        """Record an energy job whose counts follow from the instructions."""
        counts = {
            "instructions": [instructions, instructions, instructions + instructions // 2000],
            "loads": [instructions // 3] * 3,
            "stores": [instructions // 6] * 3,
            "load_bytes": [3 * instructions] * 3,
            "store_bytes": [instructions] * 3,
            "cache_misses": [instructions // 90] * 3,
            "dram_bytes": [64 * (instructions // 90)] * 3,
        }
        samples = [
            Samples(quantity, "counted", 0, True, tuple(values))
            for quantity, values in counts.items()
        ]
        samples.append(Samples("energy_nj", "modelled", 0, True, (instructions // 14,) * 3))
        # The plugin's job times inferences too; they are no latencies to report.
        samples.append(Samples("latency_ns", "virtual", 0, True, (1, 2, 3)))
        evidence = {
            "runtime": {"name": "onnxruntime", "version": "1.32.0"},
            "energy": {
                "model": "horowitz-45nm",
                "source": "Horowitz, ISSCC 2014",
                "table": {"instruction_pj": 70.0, "dram_pj": 1300.0},
                "cache": {
                    "l1_size": 32 << 10,
                    "l1_ways": 2,
                    "l2_size": 1 << 20,
                    "l2_ways": 16,
                    "line": 64,
                },
            },
        }
        outcome = Measured(tuple(samples), evidence=evidence)
        self.put(JobKind.ENERGY, board, artifact_sha(net, precision), outcome, **spec)

    def put_energy(self, net: str, board: str, outcome: Measured) -> None:
        self.put(JobKind.ENERGY, board, artifact_sha(net, "float"), outcome)

    def capability(self, board: str, at: str = AT, **more: object) -> None:
        clock = BOARDS[board][1]
        told = {
            "runtime": {"name": "onnxruntime", "version": "1.32.0"},
            "native": {"int8-dot": ["asimddp"]},
            "caches": [
                {"level": 1, "type": "Data", "size_bytes": 32 << 10},
                {"level": 1, "type": "Instruction", "size_bytes": 48 << 10},
                {"level": 2, "type": "Unified", "size_bytes": 256 << 10},
            ],
            "caches_source": "kernel" if board == "host" else "documented",
            "peaks": [
                {"dtype": dtype, "gmac_s": rate, "method": "onnxruntime MatMul 256, 1 thread"}
                for dtype, rate in PEAKS[board]
            ],
            "copy_gb_s": {"value": 3.2, "method": "numpy copy 32 MiB"},
            "clock": clock,
        }
        outcome = Measured((), evidence={"capability": {**told, **more}})
        self.put(JobKind.CAPABILITY, board, sha("probes"), outcome, at=at)


def fill(
    record: Record,
    boards: tuple[str, ...] = ("host", "qemu-arm64", "qemu-arm64-a76", "qemu-plain"),
) -> None:
    """Record what a run of every network on several boards leaves."""
    for name in boards:
        record.board(name)
    for net in NETS:
        record.candidate(net, ("onnx", "tflite") if net.name == "cnn" else ("onnx",))
    for board in boards:
        column = int(board == "qemu-arm64-a76")
        slow = {"host": 0.05, "qemu-plain": 9.0}.get(board, 1.0)
        for net in NETS:
            forms = {"float": net.float_ms}
            if net.int8_ms:
                forms["int8"] = net.int8_ms[column]
            for precision, ms in forms.items():
                record.latency(net.name, ms * slow, board, precision=precision)
                if board == "qemu-plain":
                    continue
                record.accuracy(net.name, net.wrong, board, precision)
                if board != "host":
                    record.energy(net.name, round(ms * 5e5), board, precision)
        if board == "qemu-arm64":
            for runtime, times in (("litert", 1.51), ("tflite-runtime", 0.82)):
                for precision, ms in (("float", 31.57), ("int8", 25.93)):
                    record.latency("cnn", ms * times, board, precision=precision, runtime=runtime)
        if board in PEAKS:
            record.capability(board)
    record.store.finish_run("r1", "done", AT)


@pytest.fixture
def record(tmp_path):
    made = Record(f"sqlite:///{tmp_path}/record.db")
    yield made
    made.store.close()


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """A record of every network on all boards; not to be written to."""
    made = Record(f"sqlite:///{tmp_path_factory.mktemp('boards')}/record.db")
    fill(made)
    yield made
    made.store.close()


@pytest.fixture(scope="session")
def report(full):
    """What is collected of it."""
    return collect(full.store, "r1")


@pytest.fixture(scope="session")
def html(report):
    """Its page."""
    return run_html(report)


@pytest.fixture
def section_of():
    """A function from a report and a board's name to its section."""
    return lambda report, board: next(s for s in report.sections if s.board == board)


@pytest.fixture
def look():
    """A function from a page to the words that a reader sees."""
    return _words


class _Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.said, self._in = [], ""

    def handle_starttag(self, tag, attrs):
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self.said.append(data)


def _words(html: str) -> str:
    seen = _Seen()
    seen.feed(html)
    return " ".join(" ".join(seen.said).replace("\u00a0", " ").split())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shown = Record(f"sqlite:///{folder}/record.db")
        fill(shown)
        render_run(collect(shown.store, "r1"), Path(sys.argv[1]))
        shown.store.close()

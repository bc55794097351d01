"""`flatsat measure`: one model on one board, now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import complete_boards, complete_models
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, open_lab, out, print_json, say, working
from flatsat.harness.cli.style import (
    byte_count,
    cell,
    facts_table,
    make_table,
    nanosecond_range,
    nanoseconds,
)
from flatsat.harness.console import printable

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.measure_result import LatencySummary, MeasureResult


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "measure",
        measure,
        "flatsat measure model.onnx --board host",
        "flatsat measure bert.onnx --axis sequence=128 --batch 8 --threads 2",
        "flatsat measure deep --role int8 --json > deep.json",
        panel="Work",
        bare_is_help=True,
    )


def measure(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_models,
            help="An ONNX or TFLite file, or a candidate: its name, identifier or folder.",
        ),
    ],
    board: Annotated[
        str, typer.Option(autocompletion=complete_boards, help="Where to measure.")
    ] = "host",
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads.")] = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Length of an open batch axis of the inputs.")
    ] = 1,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Length of another open axis; may be repeated."),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Fresh processes.")] = None,
    min_inferences: Annotated[
        int | None, typer.Option(min=1, help="At least so many counted inferences a process ...")
    ] = None,
    min_s: Annotated[
        float | None, typer.Option(min=0.0, help="... and so many seconds of them.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="What executes the model; by default onnxruntime or litert."),
    ] = None,
    affinity: Annotated[
        str, typer.Option(metavar="CPUS", help="CPU numbers to pin to, such as 0,2.")
    ] = "",
    role: Annotated[
        str | None, typer.Option(help="The artifact of a candidate with several, such as int8.")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(min=1.0, help="Time limit on one process.")
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Count events too, and model their energy.")
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Measure a model on a board: latency, memory, agreement with its goldens.

    Works on any ONNX or TFLite file: inputs are generated from its signature. Exit code 0 when
    measured, 1 when the model failed on the board, 2 when it can't be measured as asked (a runtime
    that refuses the file included), 3 when the board failed, 4 when the result can't be trusted.
    """
    from flatsat.harness.measure import MeasureRequest, measure_model
    from flatsat.harness.measure_result import document, exit_code

    asked: dict[str, int | float | None] = {
        "processes": processes,
        "min_inferences": min_inferences,
        "min_s": min_s,
        "deadline_s": deadline_s,
    }
    request = MeasureRequest(
        model=model,
        board=board,
        role=role,
        runtime=runtime,
        threads=threads,
        affinity=parse_cpus(affinity),
        batch=batch,
        axes=parse_axes(axis or []),
        energy=energy,
        overrides={key: value for key, value in asked.items() if value is not None},
    )
    lab = open_lab(ctx, prepare=True)
    with working(ctx) as progress:
        results = measure_model(lab, request, progress=progress)
    if as_json:
        print_json(document(results))
    for result in results:
        if not as_json and result.fault is None:
            show_result(out(), result)
        warn(result)
    return exit_code(results)


def parse_axes(texts: list[str]) -> dict[str, int]:
    """Read NAME=N; a name may hold '=' itself.

    Raises:
        UsageError: another form.
    """
    axes: dict[str, int] = {}
    for text in texts:
        name, equals, length = text.rpartition("=")
        if not equals or not name or not length.isdecimal() or int(length) < 1:
            raise UsageError(
                f"--axis {text!r} is not NAME=N with N at least 1",
                hint="for example --axis sequence=128",
            )
        axes[name] = int(length)
    return axes


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read "0,2" or "0-3".

    Raises:
        UsageError: another form.
    """
    cpus: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--affinity {text!r} is no list of CPUs", hint="for example 0,2")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(cpus))


def show_result(console: Console, result: MeasureResult) -> None:
    """Write a result for people."""
    artifact = result.artifact
    title = f"[bold]{_markup(result.name)}[/]"
    about = [artifact.format, artifact.role, byte_count(artifact.size_bytes)]
    console.print(f"{title}  [dim]{_markup(' · '.join(about))}  {artifact.sha256[:12]}[/]")
    console.print(_where(result))
    if result.latency_ns is not None:
        console.print(_latency_table(result.latency_ns))
        console.print(facts_table(_facts(result, result.latency_ns)))
    console.print(f"[dim]recorded as {result.run_id}[/]")


def warn(result: MeasureResult) -> None:
    """Say on standard error why there is no value, or why it may not be trusted."""
    if result.fault is not None:
        what = "error" if result.status == "failed" else "inconclusive"
        say(f"{what}: {result.name} on {result.board}: {result.fault.message}", style="bold red")
        if result.fault.hint:
            say(f"hint: {result.fault.hint}")
        return
    if result.crowded:
        say(
            f"warning: {result.board} was busy (load {result.busiest_load:.1f} on "
            f"{result.cores} cores): these timings don't hold; measure again when it is idle",
            style="yellow",
        )
    latency = result.latency_ns
    if latency is not None and latency.steady is not None and latency.steady < latency.processes:
        say(
            f"warning: {latency.processes - latency.steady} of {latency.processes} processes "
            "never became steady within the warm-up; their timings are counted all the same",
            style="yellow",
        )


def _where(result: MeasureResult) -> str:
    cpu = str(result.environment.get("cpu_model") or "")
    runtime = f"{result.runtime} {result.runtime_version}".rstrip()
    threads = f"{result.threads} thread" + ("s" if result.threads > 1 else "")
    parts = [result.board, *filter(None, [cpu]), runtime, threads, f"batch {result.batch}"]
    return f"[dim]{_markup(' · '.join(parts))}[/]"


def _latency_table(latency: LatencySummary) -> object:
    table = make_table("latency", "", "95 % interval", right=("", "95 % interval"))
    for name in ("p10", "p50", "p90", "p99"):
        value: float | None = getattr(latency, name)
        interval: tuple[float, float] | None = getattr(latency, f"{name}_ci")
        style = "bold cyan" if name == "p50" else ""
        shown = nanoseconds(value) if value is not None else "too few samples"
        between = nanosecond_range(*interval) if interval else ""
        table.add_row(cell(name, style), cell(shown, style), Text(between, style="dim"))
    return table


def _facts(result: MeasureResult, latency: LatencySummary) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        (
            "samples",
            f"{latency.n:,} in {latency.processes} processes; min {nanoseconds(latency.min)}, "
            f"mean {nanoseconds(latency.mean)}"
            + (" (virtual time)" if latency.clock == "virtual" else ""),
        )
    ]
    if latency.steady is not None:
        after = ""
        if latency.warmup is not None:
            fewest, most = latency.warmup
            after = f" after {fewest}" + (f" to {most}" if most != fewest else "") + " inferences"
        facts.append(("steady", f"{latency.steady} of {latency.processes} processes{after}"))
    if latency.load_ns is not None:
        facts.append(("load", nanoseconds(latency.load_ns)))
    if result.memory_bytes is not None:
        peak, method = result.memory_bytes.peak_rss, result.memory_bytes.method
        facts.append(("memory", f"{byte_count(peak)} peak resident ({method})"))
    if result.energy is not None:
        told = result.energy
        facts.append(
            ("energy", f"{told.p50_nj / 1e3:,.4g} uJ an inference, {told.class_} ({told.model})")
        )
        if told.instructions is not None and told.memory_bytes is not None:
            facts.append(
                (
                    "events",
                    f"{told.instructions:,} instructions, {byte_count(told.memory_bytes)} loaded "
                    "and stored",
                )
            )
    agreement = result.agreement
    if agreement is None:
        facts.append(("agreement", "not checked: the model has no goldens"))
    else:
        facts.append(
            (
                "agreement",
                f"{'ok' if agreement.ok else 'DISAGREES'}: max |d| {agreement.max_abs:.2g}, "
                f"{agreement.max_rel:.2g} of max; same class in {100 * agreement.top1_agree:.1f} % "
                f"of {agreement.n} goldens",
            )
        )
    return facts


def _markup(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))

"""Board sections of a report: what was measured of one workload on one board by one clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatsat.reports import words
from flatsat.reports.collect_across import across_runtimes
from flatsat.reports.collect_baselines import (
    Taken,
    equal_macs,
    float_form,
    reference,
    versus,
)
from flatsat.reports.collect_headline import headline, smoke_headline
from flatsat.reports.collect_measured import accuracies_on, measurement
from flatsat.reports.collect_together import (
    is_smoke,
    on_front,
    proxies,
    shown_facts,
    trust,
)
from flatsat.reports.context import by_context
from flatsat.reports.model import BoardSection, MeasurementReport
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.reports.collect_energy import Key, Spent
    from flatsat.reports.context import Context
    from flatsat.reports.known import Known
    from flatsat.reports.model_board import CapabilityReport
    from flatsat.reports.rows import BoardRow, OutcomeRow


@dataclass(frozen=True)
class Beside:
    """What is known beside latencies, of all boards.

    Attributes:
        others: outcomes of other jobs, without samples.
        boards: that the outcomes come from.
        spent: counted events and energies.
        capabilities: what boards can do, by board_id.
    """

    others: Sequence[OutcomeRow] = ()
    boards: Sequence[BoardRow] = ()
    spent: Mapping[Key, Spent] = field(default_factory=dict)
    capabilities: Mapping[str, CapabilityReport] = field(default_factory=dict)

    def board(self, board_id: str) -> BoardRow | None:
        """Return the board of that identity, or None."""
        return next((board for board in self.boards if board.board_id == board_id), None)


def sections(
    artifacts: Mapping[str, Known],
    latencies: Sequence[OutcomeRow],
    beside: Beside,
    *,
    margin: float,
    threshold: float,
) -> tuple[BoardSection, ...]:
    """Return a section for each workload, board and clock, clock by clock.

    Args:
        artifacts: by sha256.
        latencies: outcomes of latency jobs, with samples.
        beside: what is known beside them.
        margin: loss of accuracy that counts as none.
        threshold: relative difference of latency that counts as equal.
    """
    rows: dict[str, list[OutcomeRow]] = {}
    for row in latencies:
        rows.setdefault(row.job.artifact, []).append(row)
    workloads = {k.candidate.workload for k in artifacts.values() if k.candidate.workload}
    # An imported model tells no workload: it stands beside the run's only one.
    only = next(iter(workloads)) if len(workloads) == 1 else ""
    groups: dict[tuple[str, str, TimeKind], list[Taken]] = {}
    for sha256, held in artifacts.items():
        for where, taken in by_context(rows.get(sha256, ()), "latency_ns").items():
            found = Taken(held, where, "", tuple(taken))
            key = (held.candidate.workload or only, where.board_id, found.clock)
            groups.setdefault(key, []).append(found)
    made = [
        _section(key, _labelled(group), beside, margin, threshold) for key, group in groups.items()
    ]
    workloads_seen = list(dict.fromkeys(section.workload for section in made))
    boards_seen = list(dict.fromkeys(section.board_id for section in made))

    def place(section: BoardSection) -> tuple[int, int, int]:
        # Real clocks, counted instructions, an emulator's real clock.
        clock = 2 if section.smoke else int(section.virtual)
        workload = workloads_seen.index(section.workload)
        return clock, workload, boards_seen.index(section.board_id)

    return tuple(sorted(made, key=place))


def _section(
    key: tuple[str, str, TimeKind],
    group: Sequence[Taken],
    beside: Beside,
    margin: float,
    threshold: float,
) -> BoardSection:
    workload, board_id, clock = key
    board = beside.board(board_id)
    facts = dict(board.facts) if board is not None else {}
    smoke = clock is TimeKind.WALL and is_smoke(facts)
    capability = beside.capabilities.get(board_id)
    if capability is not None and (smoke or capability.clock is not clock):
        # Rates by another clock are no roof for these latencies.
        capability = replace(capability, peaks=(), copy_gb_s=None)
    accuracies = accuracies_on(beside.others, board_id)
    measured: list[MeasurementReport] = []
    for one in group:
        found = measurement(one, group, accuracies, beside.spent, capability)
        measured.append(found if smoke else _held_against(found, one, group, threshold))
    measured.sort(key=lambda m: m.p50_ns.value or math.inf)
    if not smoke:
        measured = on_front(measured)
    return BoardSection(
        workload=workload,
        board=group[0].context.board,
        board_id=board_id,
        kind=board.kind if board is not None else "",
        clock=clock,
        facts=shown_facts(facts),
        measurements=tuple(measured),
        proxies=() if smoke else proxies(measured),
        trust=trust(
            [row for one in group for row in one.rows],
            facts,
            [m.spread for m in measured] if clock is TimeKind.VIRTUAL else None,
        ),
        headline=smoke_headline() if smoke else headline(measured, margin),
        margin=margin,
        smoke=smoke,
        capability=capability,
        runtimes=None
        if smoke
        else across_runtimes(measured, {one.known.artifact.sha256: one.known for one in group}),
    )


def _held_against(
    found: MeasurementReport, one: Taken, group: Sequence[Taken], threshold: float
) -> MeasurementReport:
    return replace(
        found,
        versus_reference=versus(one, reference(one, group), threshold),
        versus_equal_macs=versus(one, equal_macs(one, group), threshold),
        versus_float=versus(one, float_form(one, group), threshold),
    )


def _labelled(group: Sequence[Taken]) -> list[Taken]:
    """Give each a label, with what it was measured under where an artifact has several."""
    found: dict[str, Taken] = {}
    for one in group:
        alike = [other.context for other in group if other.known.label == one.known.label]
        label = ", ".join((one.known.label, *_what_differs(one.context, alike)))
        while label in found:
            label += " again"
        found[label] = replace(one, label=label)
    return list(found.values())


def _what_differs(mine: Context, alike: Sequence[Context]) -> list[str]:
    """Return in words what tells a context from others under which the same file was measured."""
    said = {
        "runtime": mine.runtime,
        "runtime_version": mine.runtime_version,
        "provider": mine.provider,
        "threads": words.plural(mine.threads, "thread"),
        "batch": f"batch {mine.batch}",
        "isolation": "copied processes" if mine.isolation == "fork" else "fresh processes",
        "warmup": f"{mine.warmup} warm-up",
    }
    return [
        text
        for name, text in said.items()
        if len({getattr(context, name) for context in alike}) > 1
    ]

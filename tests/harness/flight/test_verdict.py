"""Verdicts compare a bound with the limit; margins, waivers and missing evidence are said."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.harness.flight.evidence import Evidence, estimate
from flatsat.harness.flight.requirements import MissionHead, Requirement
from flatsat.harness.flight.verdict import VerdictKind, exit_code, judge

TODAY = datetime.date(2026, 11, 24)
HEAD = MissionHead(id="M", issue="1", phase="cdr", margin_policy="gsfc-3.07-1")


def requirement(**changes: object) -> Requirement:
    fields: dict[str, object] = {
        "id": "TIM-01",
        "text": "It shall be quick.",
        "category": "timing",
        "quantity": "latency",
        "statistic": "p95",
        "comparator": "<=",
        "limit": 10.0,
        "unit": "us",
        **changes,
    }
    return Requirement.model_validate(fields)


def latency(value_ns: int, *, n: int = 100, processes: int = 6) -> Evidence:
    return Evidence(
        latency_ns=tuple(tuple(value_ns + i for i in range(n)) for _ in range(processes)),
        size_bytes=1000,
        board="host",
        runtime="onnxruntime",
    )


@pytest.mark.parametrize(
    ("value_ns", "kind"),
    [
        (1_000, VerdictKind.PASS),
        (7_000, VerdictKind.PASS_MARGIN_SHORT),
        (20_000, VerdictKind.FAIL),
        (9_905, VerdictKind.INCONCLUSIVE),
    ],
)
def test_latency_percentile_against_its_bound(value_ns: int, kind: VerdictKind) -> None:
    verdict = judge(requirement(), HEAD, latency(value_ns), TODAY)
    assert verdict.kind is kind, verdict


def test_too_few_samples_are_inconclusive_not_a_pass() -> None:
    verdict = judge(requirement(statistic="p99"), HEAD, latency(10, n=49, processes=6), TODAY)
    assert verdict.kind is VerdictKind.INCONCLUSIVE
    assert "too few" in verdict.reason


def test_too_few_processes_are_inconclusive() -> None:
    verdict = judge(requirement(min_repeats=7), HEAD, latency(10), TODAY)
    assert verdict.kind is VerdictKind.INCONCLUSIVE


def test_accuracy_uses_the_lower_bound() -> None:
    asked = requirement(
        category="task",
        quantity="accuracy",
        statistic="mean",
        comparator=">=",
        limit=85,
        unit="percent",
    )
    close = Evidence(correct=(True,) * 860 + (False,) * 140)
    clear = Evidence(correct=(True,) * 900 + (False,) * 100)
    broken = Evidence(correct=(True,) * 800 + (False,) * 200)
    assert judge(asked, HEAD, close, TODAY).kind is VerdictKind.INCONCLUSIVE
    assert judge(asked, HEAD, clear, TODAY).kind is VerdictKind.PASS
    assert judge(asked, HEAD, broken, TODAY).kind is VerdictKind.FAIL
    assert judge(asked, HEAD, Evidence(), TODAY).kind is VerdictKind.NOT_RUN


def test_a_model_that_did_not_run_fails_its_timing() -> None:
    verdict = judge(requirement(), HEAD, Evidence(failure="crash: signal 11"), TODAY)
    assert verdict.kind is VerdictKind.FAIL
    assert "crash" in verdict.reason


def test_a_meter_that_is_not_there_leaves_energy_not_run() -> None:
    asked = requirement(category="energy", quantity="energy", statistic="mean", unit="mJ")
    assert judge(asked, HEAD, latency(10), TODAY).kind is VerdictKind.NOT_RUN


def test_virtual_time_is_no_evidence_for_a_wall_clock() -> None:
    evidence = Evidence(latency_ns=((1, 2, 3),), clock="virtual", board="host")
    verdict = judge(requirement(), HEAD, evidence, TODAY)
    assert verdict.kind is VerdictKind.NOT_RUN
    assert "virtual" in verdict.reason


def test_waiver_holds_until_it_expires() -> None:
    waiver = {"reference": "NCR-7", "approver": "PA", "expiry": "2026-12-01"}
    waived = judge(requirement(waiver=waiver), HEAD, latency(20_000), TODAY)
    assert waived.kind is VerdictKind.WAIVED
    assert waived.closed
    late = judge(requirement(waiver=waiver), HEAD, latency(20_000), datetime.date(2027, 1, 1))
    assert late.kind is VerdictKind.FAIL
    assert "expired" in late.reason


def test_margin_of_the_phase() -> None:
    flight = HEAD.model_copy(update={"phase": "flight"})
    assert judge(requirement(), flight, latency(6_800), TODAY).kind is VerdictKind.PASS
    assert judge(requirement(), HEAD, latency(6_800), TODAY).kind is VerdictKind.PASS_MARGIN_SHORT


def test_exit_codes() -> None:
    good = judge(requirement(), HEAD, latency(10), TODAY)
    bad = judge(requirement(), HEAD, latency(20_000), TODAY)
    open_ = judge(requirement(min_repeats=99), HEAD, latency(10), TODAY)
    wish = judge(requirement(criticality="desirable"), HEAD, latency(20_000), TODAY)
    assert [exit_code([good]), exit_code([good, bad, open_]), exit_code([good, open_])] == [0, 1, 4]
    assert exit_code([good, wish]) == 0


@pytest.mark.parametrize(("statistic", "n"), [("p95", 59), ("p99", 299), ("p99.9", 2995)])
def test_least_samples_for_an_upper_bound(statistic: str, n: int) -> None:
    def upper(count: int) -> float | None:
        found = estimate(Evidence(latency_ns=(tuple(range(count)),)), "latency", statistic, 0.95)
        assert not isinstance(found, str)
        return found.upper

    assert upper(n) == n - 1
    assert upper(n - 1) is None


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=300), st.sampled_from(["p50", "p95"]))
def test_bounds_enclose_the_percentile(values: list[int], statistic: str) -> None:
    found = estimate(Evidence(latency_ns=(tuple(values),)), "latency", statistic, 0.95)
    assert not isinstance(found, str)
    assert min(values) <= found.point <= max(values)
    if found.upper is not None:
        assert found.upper >= found.point
    if found.lower is not None:
        assert found.lower <= found.point


def test_maximum_is_called_observed() -> None:
    found = estimate(latency(5), "latency", "max_observed", 0.95)
    assert not isinstance(found, str)
    assert "max observed, n=600" in found.note

"""Kind `linux`: its settings, and sessions over a real SSH server on loopback."""

from __future__ import annotations

import asyncio
import getpass
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flatsat.canonical import sha256_file
from flatsat.errors import ConfigError
from flatsat.jobspec import JobSpec
from flatsat.outcome import Failed, Measured, Owner
from flatsat.targets.board import Lease, LinkDown
from flatsat.targets.boards import make_board
from flatsat.targets.linux import LinuxBoard, SerialWay, SshWay
from flatsat.targets.linux_sites import LinuxSites
from flatsat.targets.ssh_carrier import carry_files
from flatsat.targets.ssh_connection import SshAddress
from flatsat.targets.transfer import PATIENCE_S
from flatsat.targets.wheels import Site, Wheels

if TYPE_CHECKING:
    from flatsat.targets.session import AgentSession

MakeSshd = Callable[..., Any]
MakeJob = Callable[..., JobSpec]
LONG_S = 60.0
SSH = {"via": "ssh", "host": "em1.lab", "user": "pi"}
SERIAL = {"via": "serial", "port": "/dev/ttyUSB0", "user": "pi"}


# Settings.


def test_settings_reach_the_board() -> None:
    settings: dict[str, object] = {
        "links": [
            {**SSH, "port": 2222, "key": "~/.ssh/em1", "known_hosts": "hosts", "keepalive_s": 5},
            {**SERIAL, "baud": 921600, "password_env": "EM1"},
        ],
        "link": "serial",
        "provision_via": "ssh",
        "store": "/var/lib/flatsat",
        "clock": "wall",
        "sites": {"onnxruntime": "/opt/ort"},
    }
    assert make_board("em1", "linux", settings) == LinuxBoard(
        "em1",
        (
            SshWay("em1.lab", "pi", 2222, "hosts", (Path("~/.ssh/em1"),), None, 5.0),
            SerialWay("/dev/ttyUSB0", 921600, "pi", "EM1"),
        ),
        "serial",
        "ssh",
        None,
        "/var/lib/flatsat",
        {"onnxruntime": "/opt/ort"},
    )


def test_the_first_link_carries_the_agent_by_default() -> None:
    board = make_board("b", "linux", {"links": [SERIAL, SSH]})
    assert isinstance(board, LinuxBoard)
    assert board.way(board.link).via == "serial"
    assert (board.kind, board.time_kind, board.meter, board.runs_here) == (
        "linux",
        "wall",
        "none",
        False,
    )


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({}, "has no links", "links = [{ via"),
        ({"links": []}, "has no links", "links = [{ via"),
        ({"links": "ssh"}, "links must be a list", ""),
        ({"links": ["em1.lab"]}, r"links\[0\] must be a table", ""),
        ({"links": [SSH], "lnk": "ssh"}, "no setting is called 'lnk'", "'link'"),
        ({"links": [{**SSH, "hots": "x"}]}, r"links\[0\]: no setting is called 'hots'", "'host'"),
        ({"links": [SSH, {"via": "serail"}]}, r"links\[1\]: via can't be 'serail'", "'serial'"),
        ({"links": [{"host": "x"}]}, "user is missing", ""),
        ({"links": [{"via": "serial"}]}, "port is missing", ""),
        ({"links": [{**SSH, "port": "22"}]}, "port must be a int", ""),
        ({"links": [{**SSH, "port": 70000}]}, "port can't be 70000", "1 to 65535"),
        ({"links": [{**SERIAL, "baud": 3}]}, "baud can't be 3", "1200"),
        ({"links": [{**SSH, "key": [1]}]}, "key must be a file", ""),
        ({"links": [{**SSH, "keepalive_s": 0}]}, "keepalive_s must be more than 0", ""),
        ({"links": [{**SSH, "password": "x"}]}, "does not belong into a file", "password_env"),
        ({"links": [SSH, SSH]}, "two via 'ssh'", ""),
        ({"links": [SSH], "link": "serial"}, "link can't be 'serial'", "ssh"),
        ({"links": [SSH], "provision_via": "shh"}, "provision_via can't be", "'ssh'"),
        ({"links": [SSH], "clock": "virtual"}, "clock can't be 'virtual'", "wall"),
        ({"links": [SSH], "sites": {"onnxruntime": 1}}, "sites.onnxruntime must be a folder", ""),
        (
            {"links": [{**SERIAL, "user": "root"}, SSH], "provision_via": "ssh"},
            "root and pi have no store in common",
            "absolute",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_board("em1", "linux", settings)
    assert caught.value.message.startswith("board 'em1'")
    assert hint in (caught.value.hint or "")


def test_a_board_that_is_not_opened_imports_no_ssh() -> None:
    code = "import sys; from flatsat.targets.boards import make_board\n"
    code += f"make_board('b', 'linux', {{'links': [{SSH!r}]}})\n"
    code += "assert not {'asyncssh', 'serial', 'numpy', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Sessions.


@pytest.fixture
async def over_ssh(make_sshd: MakeSshd, lease: Lease, request: pytest.FixtureRequest) -> Any:
    """Return a server, and a session over it with this machine as the board."""
    sshd = make_sshd()
    board = make_board("em1", "linux", sshd.board_settings())
    session = await board.open(lease)
    yield sshd, session
    await session.close()


async def test_a_greedy_candidate_fails_and_board_and_link_live_on(
    over_ssh: tuple[Any, AgentSession], files: Any, make_faulty: MakeJob, make_latency: MakeJob
) -> None:
    _, session = over_ssh
    greedy, model = files.fault("eat-memory"), files.dense()
    for sha256 in (greedy, model):
        await session.put(sha256, files.paths[sha256])
    limit = {"memory_limit_bytes": 1 << 30}
    outcome = await session.run("greedy", make_faulty(greedy, plan=limit))
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.code) == (Owner.CANDIDATE, "out-of-memory")
    assert [state.phase for state in outcome.health] == ["before", "after"]
    outcome = await session.run("next", make_latency(model))
    assert isinstance(outcome, Measured)
    told = {(s.quantity, s.kind) for s in outcome.samples}
    assert {("rss_bytes", "VmHWM"), ("pss_bytes", "smaps_rollup")} <= told


async def test_a_killed_connection_in_mid_job_is_told_and_leaves_no_orphan(
    over_ssh: tuple[Any, AgentSession], files: Any, make_faulty: MakeJob, lease: Lease
) -> None:
    sshd, session = over_ssh
    hang = files.fault("hang")
    await session.put(hang, files.paths[hang])
    agent = psutil.Process(int(session.welcome["pid"]))
    job = asyncio.create_task(session.run("j", make_faulty(hang)))
    while not (workers := agent.children(recursive=True)):
        await asyncio.sleep(0)
    sshd.cut()
    with pytest.raises(LinkDown, match="broke"):
        await job
    assert psutil.wait_procs([agent, *workers], timeout=LONG_S)[1] == []
    again = await make_board("em1", "linux", sshd.board_settings()).open(lease)
    await again.close()


async def test_an_unset_password_variable_is_named(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EM1_PASSWORD", raising=False)
    board = make_board("em1", "linux", {"links": [{**SSH, "password_env": "EM1_PASSWORD"}]})
    with pytest.raises(ConfigError, match="no EM1_PASSWORD"):
        await board.open(lease)


# Runtimes on their way.


class Slow:
    """A link that has measured how fast it is."""

    bytes_per_s = 11_520.0


def fake_site(folder: Path, count: int = 2) -> Site:
    wheels = []
    for number in range(count):
        wheel = folder / f"part{number}-1.0-py3-none-any.whl"
        wheel.write_bytes(bytes([number]) * 300_000)
        wheels.append(wheel)
    hashes = tuple(sha256_file(wheel) for wheel in wheels)
    return Site("onnxruntime", "onnxruntime-1.0-0123", tuple(wheels), 300_000 * count, hashes)


def test_a_slow_line_says_how_long_wheels_would_take() -> None:
    site = Site("litert", "litert-2.3.0-01", (), 40_000_000, ())
    sites = LinuxSites("em1", (), Slow())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"11.5 kB/s.*40 MB.*58 minutes") as caught:
        sites.before_sending(site)
    assert 'provision_via = "ssh"' in (caught.value.hint or "")
    quick = Site("litert", "litert-2.3.0-01", (), int(Slow.bytes_per_s * PATIENCE_S), ())
    sites.before_sending(quick)


def test_what_the_board_has_by_itself_is_not_sent() -> None:
    sites = LinuxSites("em1", ["onnxruntime"], Slow(), wheels=Wheels())  # type: ignore[arg-type]
    assert sites.site("onnxruntime", None) is None  # type: ignore[arg-type]


def test_wheels_are_carried_beside_a_slow_line(tmp_path: Path) -> None:
    carried: list[Site] = []
    site = fake_site(tmp_path)
    LinuxSites("em1", (), Slow(), carried.append).before_sending(site)  # type: ignore[arg-type]
    assert carried == [site]


async def test_carried_files_lie_where_the_agent_finds_them(
    over_ssh: tuple[Any, AgentSession], tmp_path: Path
) -> None:
    sshd, session = over_ssh
    site = fake_site(tmp_path)
    address = SshAddress("127.0.0.1", sshd.port, getpass.getuser(), sshd.known_hosts, (sshd.key,))
    # A transfer of the agent's own that broke off is gone on with.
    partial = sshd.home / ".cache" / "flatsat" / "partial" / site.sha256[0]
    partial.write_bytes(site.wheels[0].read_bytes()[:1000])
    files = dict(zip(site.sha256, site.wheels, strict=True))
    for _ in range(2):
        await carry_files(
            address, "~/.cache/flatsat", files, python=sys.executable, deadline_s=LONG_S
        )
    assert not partial.exists()
    for sha256, wheel in files.items():
        wheel.unlink()
        wheel.write_bytes(b"what is not read is not sent")
        await session.put(sha256, wheel)

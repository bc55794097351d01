"""The QMP client, against a scripted peer that misbehaves on demand and against a real QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flatsat.targets.qmp import QmpClient, QmpError

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


async def read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(await reader.readline())
    return request


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(line(GREETING))
    request = await read_request(reader)
    assert request["execute"] == "qmp_capabilities"
    writer.write(line({"return": {}, "id": request["id"]}))


@contextlib.asynccontextmanager
async def peer(path: Path, script: Script) -> AsyncIterator[Path]:
    """Serve `script` to whoever connects to the socket; its exceptions fail the test."""
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    async with server:
        yield path
    assert not failures, failures


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("q") / "s"


async def test_answers_find_their_commands_in_any_order(socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        first, second = await read_request(reader), await read_request(reader)
        assert (first["arguments"], second["arguments"]) == ({"a-b": 1}, {"a-b": 2})
        writer.write(line({"event": "STOP", "timestamp": {}}))
        writer.write(line({"return": "two", "id": second["id"]}))
        writer.write(line({"return": "stray", "id": 999}))
        writer.write(line({"return": "one", "id": first["id"]}))
        await reader.read()

    async with peer(socket_path, script):
        client = await QmpClient.connect(socket_path, 20.0)
        assert client.version["qemu"]["micro"] == 22
        one, two = await asyncio.gather(client.execute("x", a_b=1), client.execute("x", a_b=2))
        assert (one, two) == ("one", "two")
        assert [event["event"] for event in client.events] == ["STOP"]
        await client.close()
        with pytest.raises(QmpError, match="closed"):
            await client.execute("x")


async def test_a_refusal_names_its_reason_and_class(socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        request = await read_request(reader)
        error = {"class": "CommandNotFound", "desc": "The command x has not been found"}
        writer.write(line({"error": error, "id": request["id"]}))
        await reader.read()

    async with peer(socket_path, script):
        client = await QmpClient.connect(socket_path, 20.0)
        with pytest.raises(QmpError, match="has not been found") as raised:
            await client.execute("x")
        assert raised.value.kind == "CommandNotFound"
        await client.close()


async def test_a_death_ends_all_that_wait(socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await read_request(reader)

    async with peer(socket_path, script):
        client = await QmpClient.connect(socket_path, 20.0)
        event = asyncio.create_task(client.wait_for(lambda _: False, 20.0))
        with pytest.raises(QmpError, match="has ended"):
            await client.execute("x")
        with pytest.raises(QmpError, match="has ended"):
            await event
        with pytest.raises(QmpError, match="has ended"):
            await client.execute("y")
        await client.close()


async def test_silence_has_a_deadline_and_a_late_answer_is_dropped(socket_path: Path) -> None:
    late = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        request = await read_request(reader)
        await late.wait()
        writer.write(line({"return": "late", "id": request["id"]}))
        request = await read_request(reader)
        writer.write(line({"return": "fresh", "id": request["id"]}))
        await reader.read()

    async with peer(socket_path, script):
        client = await QmpClient.connect(socket_path, 20.0)
        with pytest.raises(QmpError, match="did not answer 'slow'"):
            await client.execute("slow", 0.05)
        with pytest.raises(QmpError, match="nothing of the kind"):
            await client.wait_for(lambda _: True, 0.05)
        late.set()
        assert await client.execute("quick") == "fresh"
        await client.close()


@pytest.mark.parametrize(
    "first", [b"SSH-2.0-OpenSSH_9.2\r\n", b"[]\n", b'{"QMP": 1}\n', b"", b'{"QMP"']
)
async def test_what_is_no_qemu_is_told_apart(socket_path: Path, first: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()

    async with peer(socket_path, script):
        with pytest.raises(QmpError, match="can't talk to QEMU"):
            await QmpClient.connect(socket_path, 20.0)


async def test_a_peer_that_never_greets_has_a_deadline(socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(socket_path, script):
        with pytest.raises(QmpError, match="did not greet"):
            await QmpClient.connect(socket_path, 0.05)


async def test_nobody_at_the_socket_is_an_error(socket_path: Path) -> None:
    with pytest.raises(QmpError, match="can't talk to QEMU"):
        await QmpClient.connect(socket_path, 20.0)


async def test_events_can_be_forgotten_and_awaited(socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(line({"event": "RESET", "data": {"n": 1}}))
        request = await read_request(reader)
        writer.write(line({"return": {}, "id": request["id"]}))
        writer.write(line({"event": "RESET", "data": {"n": 2}}))
        await reader.read()

    async with peer(socket_path, script):
        client = await QmpClient.connect(socket_path, 20.0)
        is_reset: Callable[[Any], bool] = lambda event: event["event"] == "RESET"  # noqa: E731
        assert (await client.wait_for(is_reset, 20.0))["data"] == {"n": 1}
        client.forget_events()
        await client.execute("system_reset")
        assert (await client.wait_for(is_reset, 20.0))["data"] == {"n": 2}
        await client.close()


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="no QEMU on this machine")
async def test_a_real_qemu_is_driven_and_ended(socket_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-aarch64", "-M", "none", "-nodefaults", "-display", "none", "-S"),
        *("-qmp", f"unix:{socket_path},server=on,wait=off"),
    )
    try:
        async with asyncio.timeout(60.0):
            while not socket_path.exists():
                await asyncio.sleep(0.01)
        client = await QmpClient.connect(socket_path, 60.0)
        assert (await client.execute("query-status"))["status"] == "prelaunch"
        assert "VM status: paused" in await client.human("info status")
        with pytest.raises(QmpError) as raised:
            await client.execute("no-such-command")
        assert raised.value.kind == "CommandNotFound"
        await client.execute("quit")
        async with asyncio.timeout(60.0):
            assert await process.wait() == 0
        with pytest.raises(QmpError):
            await client.execute("query-status")
        await client.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

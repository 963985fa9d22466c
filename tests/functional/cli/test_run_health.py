"""`leveret run --health`, `leveret health`, `leveret top` and the log, as a user and a supervisor see them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.shop import DEADLINE, Shop, ended, until

from leveret.cli.probe import EndpointUnreachable, fetch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def address() -> str:
    """An address that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def page(address: str) -> dict[str, Any] | None:
    try:
        return fetch(address, "/health", 10)
    except EndpointUnreachable:
        return None


async def page_where(address: str, condition: Any, process: subprocess.Popen[str]) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE):
        while (found := await asyncio.to_thread(page, address)) is None or not condition(found):
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.1)
    return found


async def command(*arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "leveret.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=os.environ | {"COLUMNS": "140"},
    )
    return done.returncode, done.stdout + done.stderr


def handled(found: dict[str, Any]) -> int:
    return sum(queue["delivered"] for queue in found["queues"].values())


@pytest.mark.parametrize("processes", [1, 2])
async def test_one_endpoint_speaks_for_all_processes(local_shop: Shop, address: str, processes: int) -> None:
    await local_shop.publish(300)
    arguments = ("shop:app", "--processes", str(processes), "--health", address)
    with local_shop.running(*arguments) as process:
        found = await page_where(address, lambda it: it["ready"] and handled(it) == 300, process)
        assert [it["process"] for it in found["processes"]] == list(range(processes))
        assert len({it["pid"] for it in found["processes"]}) == processes
        queue = local_shop.queue
        await page_where(address, lambda it: it["queues"][queue]["consumers_of_all"] == processes, process)
        await page_where(address, lambda it: it["queues"][queue]["messages"] == 0, process)
        assert await command("health", address) == (0, "ready\n")
        assert await command("health", "--live", f"http://{address}/") == (0, "live\n")
        status, text = await command("top", address)
        assert status == 0
        assert "shop:app  ready" in text
        assert re.search(rf"{local_shop.queue} +0 ", text)
        process.terminate()
        status, error = await ended(process)
    assert (status, "Traceback" in error) == (0, False)
    status, text = await command("health", address)
    assert status == 3
    assert "did not answer" in text


async def test_metrics_are_added_up_and_never_fall(local_shop: Shop, address: str) -> None:
    pytest.importorskip("leveret_prometheus")

    def deliveries() -> float:
        import urllib.request

        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(r"^leveret_deliveries_messages_total\{.*\} (\S+)$", text, re.MULTILINE)
        assert len(found) == 1
        return float(found[0])

    await local_shop.publish(500)
    with local_shop.running("shop:app", "--processes", "2", "--health", address) as process:
        found = await page_where(address, lambda it: it["ready"] and handled(it) == 500, process)
        assert await asyncio.to_thread(deliveries) == 500
        os.kill(found["processes"][1]["pid"], signal.SIGKILL)
        found = await page_where(address, lambda it: it["restarts"] == 1, process)
        assert handled(found) == 500
        await local_shop.publish(100)
        found = await page_where(address, lambda it: it["ready"] and handled(it) == 600, process)
        assert await asyncio.to_thread(deliveries) == 600


async def test_a_loop_that_is_blocked_is_not_live(local_shop: Shop, address: str) -> None:
    with local_shop.running("shop:busy", "--health", address) as process:
        await page_where(address, lambda it: not it["ready"] or it["ready"], process)
        await local_shop.publish(1)
        await until(lambda: local_shop.lines("begun"), process)
        await page_where(address, lambda it: not it["live"], process)
        status, text = await command("health", "--live", address)
        assert status == 1
        assert re.fullmatch(r"not live\n  its event loop has not turned for \d+ s\n", text)


async def test_a_port_in_use_disturbs_no_message(local_shop: Shop) -> None:
    await local_shop.publish(20)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with local_shop.running("shop:app", "--health", address) as process:
            await until(lambda: len(local_shop.lines("handled")) == 20, process)
            process.terminate()
            status, error = await ended(process)
    assert status == 0
    assert error.count("health cannot be served on") == 1


async def test_health_address_that_is_wrong_is_one_line(local_shop: Shop) -> None:
    with local_shop.running("shop:app", "--health", "here") as process:
        status, error = await ended(process)
    assert (status, error) == (1, "Error: the health address is HOST:PORT, not 'here'\n")


async def test_log_of_all_processes_is_json_in_a_file(local_shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    with local_shop.running("shop:app", "--processes", "2", "--log-file", str(file), "--log-format", "json") as process:
        await until(lambda: file.exists() and file.read_text().count("consumes queue ") == 2, process)
        process.terminate()
        status, error = await ended(process)
    assert (status, error) == (0, "")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for said in ("connected to ", "consumes queue ", "takes no more messages", "stopped"):
        found = [it for it in records if it["message"].startswith(f"shop: {said}")]
        assert sorted(it["process_index"] for it in found) == [0, 1]
    assert {it["level"] for it in records} == {"INFO"}


async def test_app_run_serves_its_health_too(local_shop: Shop, address: str) -> None:
    (local_shop.folder / "program.py").write_text(f"import shop\n\nshop.app.run(health='{address}')\n")
    await local_shop.publish(1)
    with local_shop.program(local_shop.folder / "program.py") as process:
        await page_where(address, lambda it: it["ready"] and handled(it) == 1, process)
        process.terminate()
        assert (await ended(process))[0] == 0


async def test_systemd_is_told_when_the_run_is_ready(local_shop: Shop, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    await local_shop.publish(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(path)
        supervisor.settimeout(DEADLINE)
        with local_shop.running("shop:app", NOTIFY_SOCKET=path) as process:
            assert await asyncio.to_thread(supervisor.recv, 100) == b"READY=1"
            process.terminate()
            assert (await ended(process))[0] == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://x:1", "the health endpoint is http://HOST:PORT"), ("127.0.0.1:99999", "is no address")],
)
async def test_url_that_is_wrong_is_named(url: str, said: str) -> None:
    status, text = await command("health", url)
    assert status == 2
    assert said in text


async def test_another_server_is_not_taken_for_the_endpoint() -> None:
    server = await asyncio.start_server(_other, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        status, text = await command("top", f"{host}:{port}")
        assert status == 1
        assert "is not the health endpoint of leveret run" in text


async def _other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n<html></html>")
    await writer.drain()
    writer.close()

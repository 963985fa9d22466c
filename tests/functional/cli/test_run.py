"""`leveret run` as a user runs it: processes, signals and crashes, on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support.servers import ON_EVERY_SERVER, node_of
from tests.support.shop import DEADLINE, Shop, alive, ended, problems, until

import leveret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.rabbitmq import RabbitMQNode


@pytest.fixture(params=[*ON_EVERY_SERVER, "embedded"])
async def shop(
    request: pytest.FixtureRequest, tmp_path: Path, unique_name: Callable[[str], str]
) -> AsyncIterator[Shop]:
    url = request.getfixturevalue("embedded_url") if request.param == "embedded" else node_of(request).url
    made = Shop(tmp_path, url, unique_name("shop"))
    yield made
    async with leveret.connect(made.url) as client:
        await client.delete_queue(made.queue)


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("processes", [1, 2])
async def test_sigterm_drains_and_each_message_is_handled_or_left_exactly_once(shop: Shop, processes: int) -> None:
    await shop.publish(3000)
    with shop.running("shop:app", "--processes", str(processes)) as process:
        await until(lambda: len(set(shop.lines("begun"))) == processes and len(shop.lines("handled")) > 100, process)
        process.terminate()
        status, error = await ended(process)
    assert status == 0, error
    assert problems(error) == []
    for said in ("connected to ", "consumes queue ", "takes no more messages", "stopped"):
        assert error.count(f"shop: {said}") == processes
    handled, left = shop.lines("handled"), [number for number, _ in await shop.left()]
    assert len(handled) < 3000
    assert len(shop.lines("begun")) == len(handled)
    assert sorted(handled + left) == list(range(3000))
    assert sorted(shop.lines("started")) == sorted(shop.lines("ended"))
    assert len(shop.lines("started")) == processes


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_second_signal_ends_everything_at_once(local_shop: Shop, processes: int, stop: signal.Signals) -> None:
    await local_shop.publish(8)
    with local_shop.running("shop:app", "--processes", str(processes), SHOP_SECONDS="60") as process:
        await until(lambda: len(local_shop.lines("begun")) >= 4, process)
        process.send_signal(stop)
        await asyncio.sleep(0.3)
        assert process.poll() is None
        process.send_signal(stop)
        async with asyncio.timeout(4):
            status, _ = await ended(process)
    assert status == 128 + stop
    assert not any(map(alive, local_shop.lines("started")))
    assert len(await local_shop.left()) == 8


async def test_second_signal_ends_a_handler_that_keeps_the_loop(local_shop: Shop) -> None:
    await local_shop.publish(1)
    with local_shop.running("shop:busy") as process:
        await until(lambda: local_shop.lines("begun"), process)
        process.terminate()
        await asyncio.sleep(0.2)
        assert process.poll() is None
        process.terminate()
        assert (await ended(process))[0] == 143


@pytest.mark.parametrize("processes", [1, 2])
async def test_plain_handler_that_does_not_return_does_not_keep_the_process(local_shop: Shop, processes: int) -> None:
    await local_shop.publish(1)
    arguments = ("shop:stuck", "--processes", str(processes), "--drain-timeout", "0.2")
    with local_shop.running(*arguments) as process:
        await until(lambda: local_shop.lines("begun"), process)
        process.terminate()
        status, error = await ended(process)
    assert status == 0, error
    assert await local_shop.left() == [(0, True)]


async def test_process_keeps_its_status_when_the_interpreter_takes_long_to_end() -> None:
    # Something whose end comes after Python has taken its signal handlers away, and lasts longer than the alarm.
    program = """
import builtins, time
from leveret.app.process import exit_within
class Slow:
    def __del__(self): time.sleep(1)
builtins.kept = Slow()
exit_within(0.3, 7)
"""
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], timeout=30)
    assert done.returncode == 0


# ---------------------------------------------------------------------- crashes


async def test_worker_that_is_killed_is_replaced_and_nothing_is_lost(shop: Shop) -> None:
    await shop.publish(2000)
    with shop.running("shop:app", "--processes", "2") as process:
        await until(lambda: len(set(shop.lines("begun"))) == 2 and len(shop.lines("handled")) > 50, process)
        victim, other = shop.lines("started")
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(shop.lines("started")) == 3, process)
        await until(lambda: set(shop.lines("handled")) == set(range(2000)), process)
        process.terminate()
        status, error = await ended(process)
    assert status == 0, error
    assert re.search(rf"process [01] \(pid {victim}\) was killed by SIGKILL; starting another process in", error)
    assert len(problems(error)) == 1
    assert other in shop.lines("ended")
    # Only what the victim had begun may have been handled twice.
    assert len(shop.lines("handled")) <= 2000 + 20
    assert await shop.left() == []


async def test_worker_that_crashes_again_and_again_ends_the_command(local_shop: Shop) -> None:
    with local_shop.running("shop:crashing", "--processes", "2", "--quiet") as process:
        status, error = await ended(process)
    assert status == 1
    [last] = [line for line in error.splitlines() if line.startswith("Error: ")]
    assert "crashed 5 times within 30 s; the last one ended with status 3" in last
    assert error.endswith(last + "\n")
    assert "Traceback" not in error
    assert not any(map(alive, local_shop.lines("started")))


async def test_the_error_is_the_one_that_ended_the_command(local_shop: Shop) -> None:
    # The second worker crashes again and again; the first one only when it is stopped for that.
    with local_shop.running("shop:half", "--processes", "2", "--quiet") as process:
        status, error = await ended(process)
    assert status == 1
    [last] = [line for line in error.splitlines() if line.startswith("Error: ")]
    assert last.startswith("Error: process 1 crashed 5 times within 30 s; the last one ended with status 3")


async def test_workers_drain_when_their_parent_is_killed(local_shop: Shop) -> None:
    await local_shop.publish(3000)
    with local_shop.running("shop:app", "--processes", "2") as process:
        await until(lambda: len(set(local_shop.lines("begun"))) == 2, process)
        process.kill()
        await until(lambda: len(local_shop.lines("ended")) >= 2)
        await until(lambda: not any(map(alive, local_shop.lines("started"))))
    handled = local_shop.lines("handled")
    assert sorted(handled + [number for number, _ in await local_shop.left()]) == list(range(3000))


# ---------------------------------------------------------------------- what no attempt can mend


@pytest.mark.parametrize("processes", [1, 3])
async def test_app_that_is_not_there_is_one_line(local_shop: Shop, processes: int) -> None:
    with local_shop.running("shop:ap", "--processes", str(processes)) as process:
        status, error = await ended(process)
    assert (status, error) == (1, "Error: 'shop' has no attribute 'ap'; did you mean 'app'?\n")


@pytest.mark.integration
@pytest.mark.parametrize("processes", [1, 3])
async def test_wrong_password_is_one_line(tmp_path: Path, rabbitmq: RabbitMQNode, processes: int) -> None:
    shop = Shop(tmp_path, rabbitmq.url.replace(":guest@", ":wr0ng@"), "nobody")
    with shop.running("shop:app", "--processes", str(processes)) as process:
        status, error = await ended(process)
    assert status == 1
    assert error.startswith("Error: ")
    assert "ACCESS_REFUSED" in error
    assert error.count("\n") == 1
    assert "wr0ng" not in error


# ---------------------------------------------------------------------- App.run


@pytest.mark.parametrize(("signals", "status"), [(1, 0), (2, 143)])
async def test_app_run_is_a_program_of_its_own(local_shop: Shop, signals: int, status: int) -> None:
    await local_shop.publish(1)
    program = local_shop.folder / "program.py"
    program.write_text("import shop\n\nshop.app.run()\nprint('after')\n")
    seconds = "0.5" if status == 0 else "60"
    with local_shop.program(program, SHOP_SECONDS=seconds) as process:
        await until(lambda: local_shop.lines("begun"), process)
        for _ in range(signals):
            process.terminate()
            await asyncio.sleep(0.1)
        out, error = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert process.returncode == status, error
    assert error == ""
    assert out == ("after\n" if status == 0 else "")
    assert local_shop.lines("handled") == ([0] if status == 0 else [])


async def test_without_uvloop_it_works_too(local_shop: Shop) -> None:
    (local_shop.folder / "uvloop.py").write_text("raise ImportError('not installed')\n")
    await local_shop.publish(20)
    with local_shop.running(
        "shop:app", "--processes", "2", PYTHONPATH=str(local_shop.folder), SHOP_SECONDS="0.001"
    ) as process:
        await until(lambda: len(local_shop.lines("handled")) == 20, process)
        process.send_signal(signal.SIGINT)
        status, error = await ended(process)
    assert (status, problems(error)) == (0, [])

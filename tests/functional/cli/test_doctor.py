"""The command `leveret doctor`: its options, its exit status, its table and its JSON, and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.command_line import leveret, running
from tests.support.doctor import NAMES, of_doctor
from tests.support.paths import ROOT
from tests.support.secrets import PASSWORD

from leveret.broker import EmbeddedBroker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rabbitmq import RabbitMQNode

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(60)]


def rows(printed: str) -> dict[str, str]:
    """The states in a table, by the names of the checks."""
    found = re.findall(r"^(\S+(?: \S+)?) +(ok|warning|failed|skipped) ", printed, re.MULTILINE)
    return dict(found)


async def test_the_table_has_a_row_for_each_check_and_the_status_is_0() -> None:
    async with EmbeddedBroker() as broker:
        done = await asyncio.to_thread(leveret, "doctor", broker.url, "--timeout", "30")
        assert of_doctor(set(broker.vhosts["/"].queues)) == set()
    assert list(rows(done.stdout)) == NAMES
    assert done.stdout.startswith("amqp://guest:***@127.0.0.1:")
    assert "Leveret embedded broker" in done.stdout
    assert done.stderr == ""


def test_a_failed_check_is_status_1_and_no_password_is_shown(rabbitmq: RabbitMQNode) -> None:
    done = leveret("doctor", f"amqp://guest:{PASSWORD}@127.0.0.1:{rabbitmq.port}", status=1)
    states = rows(done.stdout)
    assert states["login"] == "failed"
    assert set(states.values()) == {"ok", "failed", "skipped"}
    assert PASSWORD not in done.stdout + done.stderr
    assert done.stderr == ""


async def test_json_goes_to_stdout_and_the_table_out_of_its_way() -> None:
    async with EmbeddedBroker() as broker:
        done = await asyncio.to_thread(leveret, "doctor", broker.url, "--json", "-")
    written = json.loads(done.stdout)
    assert written["url"] == f"amqp://guest:***@127.0.0.1:{broker.port}/%2F"
    assert written["failed"] is False
    assert [check["check"] for check in written["checks"]] == NAMES
    assert all(check.keys() == {"check", "state", "found", "advice", "figures"} for check in written["checks"])
    (trip,) = (check for check in written["checks"] if check["check"] == "round trip")
    assert trip["figures"]["publish_to_confirm_p50_ms"] > 0
    assert list(rows(done.stderr)) == NAMES


def test_json_goes_to_a_file_also_when_a_check_failed(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    leveret("doctor", f"amqp://guest:{PASSWORD}@127.0.0.1:1", "--json", str(file), status=1)
    written = json.loads(file.read_text())
    assert written["failed"] is True
    assert PASSWORD not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "URL"),
        (("http://guest:sentinel-password@localhost",), "amqp://"),
        (("amqp://guest:sentinel-password@localhost/?heartbeet=3",), "heartbeet"),
        (("amqp://localhost", "--timeout", "0"), "--timeout"),
        (("amqp://localhost", "--json", "/no/such/folder/file"), "--json"),
        (("amqp://localhost", "--nonsense"), "--nonsense"),
    ],
)
def test_what_is_wrong_in_the_command_is_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = leveret("doctor", *arguments, status=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert PASSWORD not in done.stderr


async def test_ctrl_c_leaves_nothing_on_the_broker() -> None:
    async with EmbeddedBroker() as broker:
        queues = broker.vhosts["/"].queues
        with running("doctor", broker.url) as process:
            async with asyncio.timeout(40):
                # Its message waits there for 200 ms.
                while not any(".retry.9" in name for name in queues):  # noqa: ASYNC110 - the broker tells nobody
                    await asyncio.sleep(0.002)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # noqa: ASYNC251 - the broker stands still, so that the signal comes before the message
            output, errors = await asyncio.to_thread(process.communicate, timeout=20)
        assert of_doctor(set(queues)) == set()
    assert process.returncode == 130
    assert output == ""
    assert errors == "stopped\n"


def test_the_page_has_all_checks() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    explained = re.findall(r"^\| ([\w ]+) \| .+ \|$", page.split("## The checks")[1], re.MULTILINE)
    assert explained == ["check", *NAMES]
    (shown,) = re.findall(r"```console\n\$ leveret doctor (.*?)```", page, re.DOTALL)
    assert list(rows(shown)) == NAMES

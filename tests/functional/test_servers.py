"""Which RabbitMQ servers the tests find, and which tests run on which of them. Nothing here starts one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support import rabbitmq
from tests.support.paths import ROOT
from tests.support.rabbitmq import RabbitMQServer, RabbitMQUnavailableError, find_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with programs that only say their version."""

    def make(version: str, folder: str = "") -> Path:
        programs = tmp_path / (folder or version)
        programs.mkdir(parents=True)
        for name in ("rabbitmq-server", "rabbitmqctl"):
            (programs / name).write_text(f"#!/bin/sh\necho {version}\n")
            (programs / name).chmod(0o755)
        return programs

    return make


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What this process has found is not looked up again: neither here nor by other tests after these."""
    monkeypatch.delenv("LEVERET_RABBITMQ_BIN", raising=False)
    find_servers.cache_clear()
    yield
    find_servers.cache_clear()


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What tools/rabbitmq.sh says; it must find what the tests find."""
    return subprocess.run(
        [ROOT / "tools" / "rabbitmq.sh", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_every_folder_of_the_variable_is_a_server_in_its_order(
    server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [server("4.3.6"), server("3.10.8", "with a space")]
    monkeypatch.setenv("LEVERET_RABBITMQ_BIN", os.pathsep.join(map(str, folders)))
    assert find_servers() == (RabbitMQServer(folders[0], (4, 3, 6)), RabbitMQServer(folders[1], (3, 10, 8)))
    assert list(map(str, find_servers())) == ["rabbitmq-4.3.6", "rabbitmq-3.10.8"]
    assert shell("find").stdout.splitlines() == list(map(str, folders))


def test_servers_of_one_version_are_one_server(server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [server("4.3.6"), server("4.3.6", "again")]
    monkeypatch.setenv("LEVERET_RABBITMQ_BIN", os.pathsep.join(map(str, folders)))
    assert [server.programs for server in find_servers()] == folders[:1]


def test_a_folder_without_a_server_is_an_error(
    server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEVERET_RABBITMQ_BIN", f"{server('4.3.6')}{os.pathsep}{tmp_path}/none")
    said = f"LEVERET_RABBITMQ_BIN names {tmp_path}/none, where no RabbitMQ server is"
    with pytest.raises(RabbitMQUnavailableError, match=said):
        find_servers()
    for command in ("find", "ensure"):
        done = shell(command)
        assert (done.returncode, done.stderr.strip()) == (1, said)


def test_the_cache_comes_after_the_systems_server_and_the_newest_first(
    server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path))
    cached = [server("4.0.5", "rabbitmq-trixie"), server("4.3.6", "rabbitmq-sid"), server("3.9.1", "other")]
    (cached[0] / "version").write_text("4.1.7\n")  # what tools/debian.sh has noted is not asked for again
    (tmp_path / "rabbitmq-sid.log").touch()
    found = [(server.programs, server.version) for server in find_servers() if tmp_path in server.programs.parents]
    assert found == [(cached[1], (4, 3, 6)), (cached[0], (4, 1, 7))]
    assert [server.programs for server in find_servers()][-2:] == [cached[1], cached[0]]
    assert {*shell("find").stdout.splitlines()} == {str(server.programs) for server in find_servers()}


def test_what_is_no_version_is_an_error(server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_RABBITMQ_BIN", str(server("new")))
    with pytest.raises(RabbitMQUnavailableError, match="version 'new', which is no version"):
        find_servers()


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ("all", {"late: rabbitmq-3.10.8", "late: rabbitmq-4.3.6", "silent: rabbitmq-3.10.8", "silent: rabbitmq-4.3.6"}),
        ("versioned", {"late: rabbitmq-3.10.8", "late: rabbitmq-4.3.6", "silent: rabbitmq-3.10.8"}),
        ("none", {"late: rabbitmq-3.10.8", "silent: rabbitmq-3.10.8"}),
    ],
)
def test_which_tests_run_on_which_server(
    server: Callable[..., Path], tmp_path: Path, others: str, expected: set[str]
) -> None:
    names = {
        "test_the_broker_says_that_a_delivery_was_not_acknowledged_in_time": "late",  # before 4.3
        "test_the_broker_cancels_a_consumer_of_a_quorum_queue_when": "late",  # since 4.3
        "test_s25_a_smaller_prefetch_holds_when_handlers_are_slow": "silent",  # not marked
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", f"--other-servers={others}",
         "tests/integration/consuming"],
        cwd=ROOT,
        env={**os.environ, "LEVERET_RABBITMQ_BIN": f"{server('3.10.8')}{os.pathsep}{server('4.3.6')}"},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    collected = set()
    for line in done.stdout.splitlines():
        for name, short in names.items():
            if name in line and "embedded" not in line:
                collected.add(
                    f"{short}: {next(part for part in ('rabbitmq-3.10.8', 'rabbitmq-4.3.6') if part in line)}"
                )
                if short == "late":
                    assert ("rabbitmq-4.3.6" in line) is ("cancels" in name)
    assert collected == expected


def test_no_epmd_is_left_behind_when_a_server_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = rabbitmq.free_ports(1)
    monkeypatch.setattr(rabbitmq, "free_ports", lambda count: [port])
    assert rabbitmq.ask_version(find_servers()[0].programs)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))

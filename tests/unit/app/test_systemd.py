"""systemd is told once that a run is ready, over its socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from leveret.app.systemd import Notifier

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_each_state_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(path)
        supervisor.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = Notifier()
        assert notifier.is_asked
        for state in ("READY=1", "READY=1", "STOPPING=1"):
            notifier.tell(state)
        assert [supervisor.recv(100), supervisor.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_processes_that_this_one_starts_do_not_speak_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@somewhere")
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_supervisor_that_is_gone_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().tell("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier().is_asked

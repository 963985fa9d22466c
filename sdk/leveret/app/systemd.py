"""Tells systemd (Type=notify) that a run is ready or is being stopped; see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

__all__ = ["Notifier"]

_VARIABLE: Final = "NOTIFY_SOCKET"


class Notifier:
    """Sends each state once, and nothing where no supervisor asks for it."""

    def __init__(self) -> None:
        # Processes that this one starts are not the service's main process.
        self._address = os.environ.pop(_VARIABLE, "")
        self._sent: set[str] = set()

    @property
    def is_asked(self) -> bool:
        """Whether a supervisor wants to know."""
        return bool(self._address)

    def tell(self, state: str) -> None:
        """Sends a state, such as "READY=1", unless it was sent before."""
        if not self._address or state in self._sent:
            return
        self._sent.add(state)
        # A supervisor that is gone is no reason to stop handling messages.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
            out.sendto(state.encode(), address)

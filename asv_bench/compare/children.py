"""Runs drivers as processes of their own, and reads their output. The protocol is in `asv_bench.compare.drivers`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT: Final = Path(__file__).parents[2]
#: Seconds until a driver that describes itself counts as hanging.
_DESCRIBE_TIMEOUT: Final = 30.0


class ChildError(Exception):
    """A driver failed; the text is its reason, or its output."""


@dataclass(frozen=True, slots=True)
class Program:
    """The command that starts a driver.

    Attributes:
        command: The program and its first arguments.
        environment: Variables that it needs in addition to those of this process.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Returns the driver's description."""
        return self._ask(["describe"], "described", _DESCRIBE_TIMEOUT)

    def measure(self, arguments: Sequence[str], timeout: float) -> dict[str, Any]:
        """Runs a task with the driver.

        Args:
            arguments: The task's arguments.
            timeout: Seconds until the driver is killed.

        Returns:
            The figures.

        Raises:
            ChildError: The driver failed, hung, or printed something unexpected.
        """
        return self._ask(["run", *arguments], "measured", timeout)

    def _ask(self, arguments: Sequence[str], wanted: str, timeout: float) -> dict[str, Any]:
        # Settings of Leveret that happen to be in the environment would change one side only.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEVERET_")}
        try:
            child = subprocess.Popen(
                [*self.command, *arguments],
                cwd=ROOT,
                env={**environment, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise ChildError(f"cannot be started: {error.strerror}") from error
        try:
            said, complained = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ChildError(f"did not end within {timeout:g} s, and was killed") from None
        finally:
            if child.poll() is None:  # it hangs, or this process was interrupted
                child.kill()
                child.communicate()
        outcome = _last_event(said)
        if outcome is not None and outcome["event"] == "failed":
            raise ChildError(str(outcome.get("reason")))
        if child.returncode != 0:
            raise ChildError(f"ended with status {child.returncode}: {_tail(complained)}")
        if outcome is None or outcome["event"] != wanted:
            raise ChildError(f"ended without saying {wanted!r}: {_tail(complained)}")
        return outcome


def _last_event(said: str) -> dict[str, Any] | None:
    """Returns the last JSON object of a driver's output.

    Raises:
        ChildError: A line is not an event.
    """
    outcome = None
    for line in said.splitlines():
        try:
            outcome = json.loads(line)
        except ValueError:
            outcome = None
        if not isinstance(outcome, dict) or "event" not in outcome:
            raise ChildError(f"said something that is no event: {line[:200]}")
    return outcome


def _tail(complained: str) -> str:
    lines = [line for line in complained.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:500] or "it said nothing"

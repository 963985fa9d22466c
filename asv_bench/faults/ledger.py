"""The ledger of `make faults`: it counts what the client's process reports of each message before it acknowledges it.

A report is a line: a letter, the queue, and a number or words. The client writes it to a pipe, whose other end is here.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

#: Queues whose confirmed messages must not be lost. Those of a server-named queue go with it.
DURABLE: Final = ("orders", "audit")
#: The exchange behind the server-named queue.
EVENTS: Final = "events"
_EXAMPLES: Final = 5


@dataclass(slots=True)
class Account:
    """The messages of one queue, by number.

    Attributes:
        published: How many were published.
        confirmed: Those whose outcome was CONFIRMED.
        handled: How often each was handled.
        failed: How many of the publishings ended otherwise, by outcome and error.
        handler_failures: How often a handler failed on purpose.
    """

    published: int = 0
    confirmed: set[int] = field(default_factory=set)
    handled: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    handler_failures: int = 0

    @property
    def duplicates(self) -> int:
        """How often a message was handled that had been handled before."""
        return self.handled.total() - len(self.handled)


class Ledger:
    """Takes the reports of the client. A thread reads them; others look.

    Attributes:
        accounts: By queue.
        problems: What the client found wrong itself: calls past their deadline, consumers that ended, other errors.
        counters: The consumers' counters, which the client reports when it ends.
        ended: Set when the client says that it has ended.
    """

    def __init__(self) -> None:
        self.accounts = {queue: Account() for queue in (*DURABLE, EVENTS)}
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.counters: dict[str, dict[str, int]] = {}
        self.confirmed_at = dict.fromkeys(self.accounts, 0.0)
        self.handled_at = dict.fromkeys(self.accounts, 0.0)
        self.began = threading.Event()
        self.ended = threading.Event()

    def read(self, line: str) -> None:
        """Takes one report."""
        letter, _, rest = line.rstrip("\n").partition(" ")
        queue, _, words = rest.partition(" ")
        if letter == "P":
            self.accounts[queue].published += int(words)
        elif letter == "C":
            self.accounts[queue].confirmed.update(map(int, words.split(",")))
            self.confirmed_at[queue] = time.monotonic()
        elif letter == "H":
            self.accounts[queue].handled[int(words)] += 1
            self.handled_at[queue] = time.monotonic()
        elif letter == "X":
            self.accounts[queue].failed[words] += 1
        elif letter == "F":
            self.accounts[queue].handler_failures += 1
        elif letter == "!":
            self.problems[queue] += 1
            if len(examples := self.examples.setdefault(queue, [])) < _EXAMPLES:
                examples.append(words)
        elif letter == "B":
            self.began.set()
        elif letter == "Z":
            self.counters = json.loads(rest)
            self.ended.set()
        else:
            raise ValueError(f"the client reported {line!r}")

    def missing_since(self, moment: float) -> set[str]:
        """Returns what has not happened since a moment: a confirm, or a handled message, of each queue."""
        missing = {f"nothing was confirmed for {queue}" for queue, at in self.confirmed_at.items() if at <= moment}
        return missing | {f"nothing of {queue} was handled" for queue, at in self.handled_at.items() if at <= moment}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a run.

    Attributes:
        ledger: What the client reported.
        made: How many faults of each kind were made.
        wanted: How many faults were to be made.
        left: The numbers of the messages that another client found in the queues at the end, by queue.
        wrong: What else went wrong.
        tracebacks: Those in the client's log, without the handlers' own failures.
        status: The exit status of the client's process.
        seconds: The duration of the run.
    """

    ledger: Ledger
    made: Counter[str]
    wanted: int
    left: dict[str, list[int]]
    wrong: list[str]
    tracebacks: list[str]
    status: int | None
    seconds: float

    def parked(self, queue: str) -> list[int]:
        """The messages of a queue that were parked."""
        return self.left.get(f"{queue}.parked", [])

    def lost(self, queue: str) -> set[int]:
        """The messages that were confirmed, and are neither handled nor anywhere on the broker."""
        account = self.ledger.accounts[queue]
        there = {number for name, numbers in self.left.items() if name.startswith(queue) for number in numbers}
        return account.confirmed - account.handled.keys() - there

    def count(self, counter: str) -> int:
        """Returns a counter of the consumers, added up."""
        return sum(counters.get(counter, 0) for counters in self.ledger.counters.values())

    def problems(self) -> list[str]:
        """Returns a sentence for each rule that was broken."""
        found = [
            f"{len(lost):,} messages confirmed into {queue} are lost, such as {some(sorted(lost))}"
            for queue in DURABLE
            if (lost := self.lost(queue))
        ]
        if there := {name: len(numbers) for name, numbers in self.left.items() if not name.endswith(".parked")}:
            found.append(f"messages are left in queues, neither handled nor parked: {there}")
        if dropped := self.count("dropped"):
            found.append(f"{dropped:,} messages were dropped")
        found += [
            f"{count:,} times: {what.replace('_', ' ')}: {'; '.join(self.ledger.examples[what])}"
            for what, count in self.ledger.problems.items()
        ]
        if self.tracebacks:
            found.append(
                f"{len(self.tracebacks):,} tracebacks are in the client's log; the last lines: {self.tracebacks[:3]}"
            )
        if self.status != 0:
            found.append(f"the client's process ended with status {self.status}")
        if (made := self.made.total()) < self.wanted:
            found.append(f"{made} of {self.wanted} faults were made")
        found += [
            f"nothing of {queue} was confirmed and handled: this run shows nothing"
            for queue, account in self.ledger.accounts.items()
            if not (account.confirmed and account.handled)
        ]
        return found + self.wrong


def some(numbers: list[int]) -> str:
    """The first few of them, as text."""
    return ", ".join(map(str, numbers[:_EXAMPLES]))


def as_json(counters: dict[str, Any]) -> str:
    """A report's counters on one line."""
    return json.dumps(counters, separators=(",", ":"))

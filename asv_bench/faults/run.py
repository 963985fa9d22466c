"""Ten minutes with default settings under a hundred faults: `make faults` (see docs/long-runs.md).

A client in a process of its own publishes and consumes while faults are made, drawn from a seed: on the way to the
broker (`leveret.testing.FaultProxy`), on the broker (a private RabbitMQ node) and in its handlers. Fails when a message
that was confirmed into a durable queue is lost, when one is dropped, when a consumer ends or does not go on, when a
call takes longer than its deadline, or when the client's log has a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from asv_bench.faults import plan
from asv_bench.faults.attacks import PASSWORD, SETTINGS, USER, Attacks, CannotAttackError
from asv_bench.faults.ledger import DURABLE, EVENTS, Found, Ledger
from asv_bench.programs import execute, judge, progress_bars, screen
from rich.table import Table

from leveret.testing import FaultProxy
from leveret.testing.relay import share_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.rabbitmq import RabbitMQNode

ROOT: Final = Path(__file__).parents[2]
#: Where the client's log goes.
LOG: Final = ROOT / "build" / "faults.log"
#: Where the broker has its data and logs, which stay for who looks into them.
BROKER: Final = ROOT / "build" / "faults-broker"
#: Seconds after the last fault in which every producer and every consumer has to go on. A connection is dialed again
#: after `recovery_max_delay` (30 s) at the latest.
GO_ON: Final = 60.0
#: The most seconds without a confirm or a handled message of some queue, while there are faults.
STARVED: Final = 150.0
#: Seconds in which everything has to be handled or parked in the end. The last retry comes after a minute; what its
#: queue did not take then, because the broker was just starting, comes three minutes later (RabbitMQ).
CALM: Final = 330.0
PATIENCE: Final = 60.0
ALL_WELL: Final = "nothing that was confirmed is lost, nothing was dropped, no consumer ended, no call was late"


class Client:
    """The process of the client. Use it with `with`; the end of the block kills it if it still runs.

    Args:
        url: Where it connects.
        seed: Of its random numbers.
        ledger: Takes its reports.
    """

    def __init__(self, url: str, seed: int, ledger: Ledger) -> None:
        self._command = [sys.executable, "-m", "asv_bench.faults.service", url, str(seed)]
        self._ledger = ledger
        self._wrong: list[str] = []
        self._process: subprocess.Popen[str]
        self._reader: threading.Thread
        self._log: IO[bytes]

    def __enter__(self) -> Client:
        LOG.parent.mkdir(exist_ok=True)
        self._log = LOG.open("wb")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        for file in (self._process.stdin, self._process.stdout, self._log):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._ledger.read(line)

    def tell(self, command: str) -> None:
        """Sends a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def has_ended(self) -> bool:
        """Returns whether the client's process has ended."""
        return self._process.poll() is not None

    def end(self) -> int | None:
        """Tells it to end; returns its exit status, or None when it does not end in time."""
        with contextlib.suppress(BrokenPipeError):
            self.tell("end")
        try:
            return self._process.wait(2 * PATIENCE)
        except subprocess.TimeoutExpired:
            return None


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition; returns whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Run:
    """One run.

    Args:
        options: What `parse` returns.
        progress: Called after each fault, with its kind.
    """

    def __init__(self, options: argparse.Namespace, progress: Callable[[str], None]) -> None:
        self._options = options
        self._progress = progress
        self._ledger = Ledger()
        self._made: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._given_up: set[str] = set()

    def run(self, node: RabbitMQNode) -> Found:
        """Runs, on a broker that is there; returns what was found."""
        options, ledger = self._options, self._ledger
        began = time.monotonic()
        with FaultProxy(f"amqp://{USER}:{PASSWORD}@127.0.0.1:{node.port}") as proxy:
            client = Client(proxy.url, options.seed, ledger)
            attacks = Attacks(node, proxy, ledger, client.tell)
            attacks.prepare()
            with client:
                if not wait_until(ledger.began.is_set, PATIENCE):
                    raise SystemExit(f"the client did not begin within {PATIENCE:g} s; its log is {LOG}")
                moment = time.monotonic()
                wait_until(lambda: not ledger.missing_since(moment), GO_ON)
                self._expect(moment, f"{GO_ON:g} s after the beginning")
                self._torment(attacks, client)
                self._calm_down(attacks, client)
                status = client.end()
            try:
                left = attacks.take_all()
            except CannotAttackError as error:
                left = {}
                self._wrong.append(str(error))
        return Found(
            ledger=ledger,
            made=self._made,
            wanted=options.faults,
            left=left,
            wrong=self._wrong,
            tracebacks=tracebacks(LOG.read_text(errors="replace")),
            status=status,
            seconds=time.monotonic() - began,
        )

    def _torment(self, attacks: Attacks, client: Client) -> None:
        """Makes all faults, spread over the duration."""
        steps = plan.draw(self._options.seed, self._options.faults)
        end = time.monotonic() + self._options.duration
        for number, step in enumerate(steps):
            began = time.monotonic()
            mean = (end - began) / (len(steps) - number)
            try:
                attacks.make(step)
                self._made[step.kind] += 1
            except CannotAttackError as error:
                self._wrong.append(f"a fault could not be made: {error}")
            self._progress(step.kind)
            time.sleep(max(0.0, began + mean * step.gap - time.monotonic()))
            if client.has_ended():
                self._wrong.append(f"the client's process ended after fault {number + 1} ({step.kind})")
                return
            self._expect(time.monotonic() - STARVED, f"{STARVED:g} s before fault {number + 2}")
        moment = time.monotonic()
        wait_until(lambda: not self._ledger.missing_since(moment) - self._given_up, GO_ON)
        self._expect(moment, f"{GO_ON:g} s after the last fault")

    def _expect(self, moment: float, when: str) -> None:
        """Reports once what has not happened since a moment."""
        missing = self._ledger.missing_since(moment) - self._given_up
        self._wrong += [f"{each} for {when}" for each in sorted(missing)]
        self._given_up |= missing

    def _calm_down(self, attacks: Attacks, client: Client) -> None:
        """Stops publishing, and waits until the queues are empty. The server-named queue has to work meanwhile."""
        with contextlib.suppress(BrokenPipeError):
            for queue in DURABLE:
                client.tell(f"quiet {queue}")
        moment = time.monotonic()

        left: dict[str, int] = {}

        def is_calm() -> bool:
            nonlocal left
            time.sleep(1.0)
            with contextlib.suppress(RuntimeError):
                counts = attacks.counts()
                left = {name: n for name, n in counts.items() if n and is_of_durable(name) and "parked" not in name}
                return not left
            return False

        if not wait_until(is_calm, CALM):
            self._wrong.append(f"not everything was handled or parked within {CALM:g} s; left: {left}")
        if not wait_until(lambda: self._ledger.handled_at[EVENTS] > moment, GO_ON):
            self._wrong.append("the consumer of the server-named queue did not go on")


def is_of_durable(name: str) -> bool:
    """Returns whether a queue is durable, or is a retry or parking queue of a durable one."""
    return name.startswith(DURABLE)


def tracebacks(log: str) -> list[str]:
    """Returns the last line of each traceback in a log."""
    found = []
    for block in log.split("Traceback (most recent call last):\n")[1:]:
        last = next((line for line in block.splitlines() if line and not line.startswith((" ", "\t"))), "")
        found.append(last[:200])
    return found


# ---------------------------------------------------------------------- running


def show(found: Found) -> Iterator[Table]:
    """Makes the tables for the console."""
    faults = Table("fault", "made", "what it is", title=f"{found.made.total()} faults in {found.seconds:.0f} s")
    faults.columns[1].justify = "right"
    for kind, meaning in plan.MEANINGS.items():
        faults.add_row(kind, str(found.made[kind]), meaning)
    yield faults
    messages = Table(title="messages, as the ledger outside the client's process counts them")
    messages.add_column("queue")
    for heading in (
        "published",
        "confirmed",
        "other outcomes",
        "handled",
        "failed handlers",
        "duplicates",
        "parked",
        "lost",
    ):
        messages.add_column(heading, justify="right")
    for queue, account in found.ledger.accounts.items():
        counts = [
            account.published,
            len(account.confirmed),
            account.failed.total(),
            len(account.handled),
            account.handler_failures,
            account.duplicates,
        ]
        durable = [len(found.parked(queue)), len(found.lost(queue))] if queue in DURABLE else []
        messages.add_row(queue, *(f"{count:,}" for count in (*counts, *durable)), *([] if durable else ["", ""]))
    yield messages
    outcomes: Counter[str] = Counter()
    for account in found.ledger.accounts.values():
        outcomes.update(account.failed)
    table = Table("outcome and error", "publishings", title="publishings that were not confirmed")
    table.columns[1].justify = "right"
    for words, count in outcomes.most_common():
        table.add_row(words, f"{count:,}")
    yield table
    counters = Table("counter", "of all consumers", title="the consumers' own counters")
    counters.columns[1].justify = "right"
    for name in sorted({name for each in found.ledger.counters.values() for name in each}):
        counters.add_row(name, f"{found.count(name):,}")
    yield counters


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    add = parser.add_argument
    add("--duration", type=float, default=600.0, help="seconds over which faults are spread (default %(default)s)")
    add("--faults", type=int, default=110, help="how many faults are made (default %(default)s)")
    add("--seed", type=int, help="of the faults and their moments (default: a new one, which is printed)")
    add("--server", help="the version of the RabbitMQ server, as 4.3.6 (default: the first that is found)")
    options = parser.parse_args(arguments)
    if not 1 <= options.duration <= 86_400:
        parser.error(f"--duration is 1 to 86400, not {options.duration:g}")
    if not 1 <= options.faults <= 10_000:
        parser.error(f"--faults is 1 to 10000, not {options.faults}")
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    return options


@contextlib.contextmanager
def broker(version: str | None) -> Iterator[RabbitMQNode]:
    """Starts a private RabbitMQ node. It ends with this process."""
    from tests.support.rabbitmq import RabbitMQNode, RabbitMQUnavailableError, find_servers

    try:
        servers = {".".join(map(str, server.version)): server for server in find_servers()}
        if version is not None and version not in servers:
            raise SystemExit(f"--server: there is no RabbitMQ {version} here; there are {', '.join(servers) or 'none'}")
        shutil.rmtree(BROKER, ignore_errors=True)
        BROKER.mkdir(parents=True)
        node = RabbitMQNode(BROKER, server=servers[version] if version else None, erl_args=SETTINGS)
        # The holder keeps the node's port while the node is down. The system would give it to another program, and the
        # client would talk to that one.
        with socket.socket() as holder, contextlib.closing(node):
            share_port(holder)
            holder.bind(("127.0.0.1", node.port))
            node.start()
            yield node
    except RabbitMQUnavailableError as error:
        raise SystemExit(str(error)) from None


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when a message was lost, or another promise was broken.
    """
    options = parse(arguments)
    console = screen()
    console.print(f"seed {options.seed}: {options.faults} faults in {options.duration:g} s; logs: {LOG}, {BROKER}")
    with broker(options.server) as node, progress_bars(console, remaining=True) as bars:
        bar = bars.add_task("begin", total=options.faults)

        def progress(kind: str) -> None:
            bars.update(bar, description=f"{kind:16}", advance=1, refresh=True)

        found = Run(options, progress).run(node)
    for table in show(found):
        console.print(table)
    return judge(console, found.problems(), ALL_WELL)


if __name__ == "__main__":
    execute(main)

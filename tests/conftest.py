"""What all tests share: event loops, brokers, certificates, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.brokers import IMITATED
from tests.support.leftovers import nothing_left_behind
from tests.support.loops import DEFAULT_LOOP, LOOP_FACTORIES
from tests.support.rabbitmq import RabbitMQNode, RabbitMQServer
from tests.support.servers import ON_EVERY_SERVER, node_of
from tests.support.tls import TLSAuthority

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterator

    from xdist.remote import Producer
    from xdist.scheduler import Scheduling


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails the run (as with CI=true)")
    parser.addoption(
        "--other-servers",
        choices=("all", "versioned", "none"),
        default="all",
        help="which tests run on every RabbitMQ server that is found and not on the first only: all, those that are "
        "marked server_version, or none (default: all)",
    )


def pytest_configure() -> None:
    # Commands that tests start print for a pipe, whatever terminal (or pytest-xdist) the run itself has.
    os.environ.pop("COLUMNS", None)


def pytest_xdist_auto_num_workers() -> int:
    # A third of the time a test waits for a broker or a process, so two processes keep one core busy.
    return 2 * (os.cpu_count() or 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Gives each process files, as ``--dist loadfile`` does, and all of tests/packaging to one, which builds once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneBuild(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "tests/packaging" if nodeid.startswith("tests/packaging/") else super()._split_scope(nodeid)

    return OneBuild(config, log)


def pytest_report_header() -> str:
    names = [str(parameter.values[0]) for parameter in ON_EVERY_SERVER if parameter.values[0] is not None]
    return f"servers: {', '.join(names) or 'no RabbitMQ'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = config.getoption("--other-servers")
    left_out = {item for item in items if _is_left_out(item, others)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _servers_of(item: pytest.Item) -> list[RabbitMQServer]:
    callspec = getattr(item, "callspec", None)
    return [value for value in callspec.params.values() if isinstance(value, RabbitMQServer)] if callspec else []


def _is_left_out(item: pytest.Item, others: str) -> bool:
    """Whether a test does not concern the server that it would run on, or not in this run."""
    servers = _servers_of(item)
    marker = item.get_closest_marker("server_version")
    if marker is not None:
        version = servers[0].version if servers else IMITATED
        if not marker.kwargs.get("since", ()) <= version < marker.kwargs.get("before", (math.inf,)):
            return True
    is_first = not servers or servers[0] == ON_EVERY_SERVER[0].values[0]
    return not is_first and (others == "none" or (others == "versioned" and marker is None))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := _skipped(config):
        terminalreporter.write_line(f"FAILED: {count} skipped; this run (--no-skips or CI=true) allows none", red=True)


def _skipped(config: pytest.Config) -> int:
    # A run that silently leaves RabbitMQ out would look as green as one that tested against it.
    if not config.getoption("--no-skips") and os.environ.get("CI", "").lower() != "true":
        return 0
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # The processes of pytest-xdist have none: what they skip is reported by the one that started them.
    return len(reporter.stats.get("skipped", [])) if reporter else 0


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:  # @every_loop
        return LOOP_FACTORIES
    return {DEFAULT_LOOP: LOOP_FACTORIES[DEFAULT_LOOP]}


@pytest.fixture
def started_server(request: pytest.FixtureRequest) -> None:
    """Starts the server of the test where it is the first one that needs it: that takes longer than a test may."""
    for server in _servers_of(request.node):
        request.getfixturevalue("rabbitmq_nodes")(server)


@pytest.fixture
async def no_leftovers(request: pytest.FixtureRequest, started_server: None) -> AsyncIterator[None]:
    """Fails a test that leaves tasks running, or that makes asyncio or Leveret log an error."""
    marker = request.node.get_closest_marker("time_limit")
    async with nothing_left_behind(*(marker.args if marker else ())):
        yield


@pytest.fixture(scope="session")
def tls_authority(tmp_path_factory: pytest.TempPathFactory) -> TLSAuthority:
    """Issues certificates that clients trust who load ``tls_authority.authority_file``."""
    return TLSAuthority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def rabbitmq_nodes(
    tmp_path_factory: pytest.TempPathFactory, tls_authority: TLSAuthority
) -> Iterator[Callable[[RabbitMQServer], RabbitMQNode]]:
    """Returns the node of a server, which it starts the first time: one for the whole run."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(server: RabbitMQServer) -> RabbitMQNode:
            certificate = tls_authority.issue("localhost", "127.0.0.1")
            return stack.enter_context(
                RabbitMQNode(tmp_path_factory.mktemp(str(server)), server=server, tls=certificate)
            )

        yield start


@pytest.fixture(params=ON_EVERY_SERVER)
def rabbitmq(request: pytest.FixtureRequest) -> RabbitMQNode:
    """A RabbitMQ node, with a TLS listener for ``localhost``; a test that uses it runs on every server that is here.

    The node is one for the whole run: leave it as you found it.
    """
    return node_of(request)


@pytest.fixture(params=[*ON_EVERY_SERVER, "embedded"])
async def broker_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a live broker; a test that uses it runs on every RabbitMQ and on an embedded broker of its own.

    The embedded broker lives in the test's event loop and is new for every test; a RabbitMQ is one for all of them, so
    take names from ``unique_name`` and delete what is durable.
    """
    if request.param != "embedded":
        yield node_of(request).url
        return
    from leveret.broker import EmbeddedBroker

    async with EmbeddedBroker() as broker:
        yield broker.url


_numbers = itertools.count(1)


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Returns a function that makes names of queues and exchanges that no other test uses."""

    def name(prefix: str = "test") -> str:
        return f"{prefix}-{os.getpid()}-{next(_numbers)}"

    return name

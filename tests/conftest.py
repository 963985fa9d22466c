"""What all tests share: event loops, brokers, certificates, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.loops import DEFAULT_LOOP, LOOP_FACTORIES
from tests.support.rabbitmq import RabbitMQNode, RabbitMQUnavailableError, find_programs
from tests.support.tls import TLSAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails the run (as with CI=true)")


def pytest_configure() -> None:
    # Commands that tests start print for a pipe, whatever terminal (or pytest-xdist) the run itself has.
    os.environ.pop("COLUMNS", None)


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


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, object]:
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:  # @every_loop
        return LOOP_FACTORIES
    return {DEFAULT_LOOP: LOOP_FACTORIES[DEFAULT_LOOP]}


@pytest.fixture(scope="session")
def tls_authority(tmp_path_factory: pytest.TempPathFactory) -> TLSAuthority:
    """Issues certificates that clients trust who load ``tls_authority.authority_file``."""
    return TLSAuthority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory, tls_authority: TLSAuthority) -> Iterator[RabbitMQNode]:
    """A RabbitMQ node for the whole run, with a TLS listener for ``localhost``. Leave it as you found it."""
    try:
        find_programs()
    except RabbitMQUnavailableError as error:
        pytest.skip(str(error))
    certificate = tls_authority.issue("localhost", "127.0.0.1")
    with RabbitMQNode(tmp_path_factory.mktemp("rabbitmq"), tls=certificate) as node:
        yield node


@pytest.fixture(params=[pytest.param("rabbitmq", marks=pytest.mark.integration), "embedded"])
async def broker_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a live broker; a test that uses it runs once on RabbitMQ and once on an embedded broker of its own.

    The embedded broker lives in the test's event loop and is new for every test; RabbitMQ is one for all of them, so
    take names from ``unique_name`` and delete what is durable.
    """
    if request.param == "rabbitmq":
        yield request.getfixturevalue("rabbitmq").url
        return
    from leveret.broker import EmbeddedBroker

    async with EmbeddedBroker() as broker:
        yield broker.url


_numbers = itertools.count(1)


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Returns a function that makes names of queues and exchanges that no other test uses."""
    return lambda prefix="test": f"{prefix}-{os.getpid()}-{next(_numbers)}"

"""What `connect` returns is no client: whoever forgets to open it is told so."""

from __future__ import annotations

import gc
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.errors import ConfigurationError, ConnectionClosed, NotOpened
from leveret.settings import ConnectionSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

URL = "amqp://guest:5entine1@localhost:1"


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda client: client.producer(), "has no 'producer'"),
        (lambda client: client.consumer("q"), "has no 'consumer'"),
        (lambda client: client.publish(1), "has no 'publish'"),
        (lambda client: client.close(), "has no 'close'"),
        (lambda client: client.__enter__(), "cannot be used by a plain `with`"),
    ],
)
async def test_use_before_opening_says_how_to_open(use: Callable[[Any], object], said: str) -> None:
    connecting: Any = leveret.connect(URL)
    with pytest.raises(NotOpened) as caught:
        use(connecting)
    text = str(caught.value)
    assert text.startswith(f"connect(...) {said}: it was not opened; write `async with connect(...) as ...:`")
    assert "await connect(...)" in text
    assert "5entine1" not in f"{text} {connecting!r}"
    del caught  # its traceback holds the opening
    with pytest.warns(RuntimeWarning, match="never opened"):
        connecting = None


async def test_a_plain_with_is_refused() -> None:
    connecting: Any = leveret.connect(URL)
    with pytest.raises(NotOpened, match="plain `with`"), connecting:
        raise AssertionError("the block was entered")
    assert not hasattr(connecting, "producer")  # an AttributeError, too
    with pytest.warns(RuntimeWarning, match=re.escape("connect(...) was never opened; write `async with connect(...)")):
        connecting = None


async def test_a_dedicated_connection_that_is_not_awaited_says_so(client: leveret.Client) -> None:
    opening: Any = client.dedicated_connection("orders")
    with pytest.raises(NotOpened, match=re.escape("dedicated_connection('orders') has no 'producer'")):
        opening.producer()
    with pytest.warns(RuntimeWarning, match=re.escape("dedicated_connection('orders') was never opened")):
        opening = None


async def test_nothing_is_said_about_what_was_opened_or_could_not_be(broker: Broker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with leveret.connect(broker.url) as client:
            assert client.connection.is_open
        await (await leveret.connect(broker.url)).close()
        unreachable = leveret.connect(broker.url, virtual_host="nowhere")
        for _ in range(2):  # it may be tried again
            with pytest.raises(ConnectionClosed):
                await unreachable
        del unreachable
        with pytest.raises(ConfigurationError):
            leveret.connect(ConnectionSettings(), hearbeat=5)
        gc.collect()

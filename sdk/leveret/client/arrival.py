"""The first connection of a client that may wait for its broker."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import LeveretError, OperationTimeout, again
from leveret.protocol.recovery import Backoff, Prospect, SparseLog, prospect_of

if TYPE_CHECKING:
    from leveret.connection.link import Link

__all__ = ["wait_for_broker"]

logger = logging.getLogger("leveret.client")

#: The longest delay between two attempts, in seconds and as a share of the time to wait.
_LONGEST_DELAY: Final = 5.0
_LONGEST_SHARE: Final = 0.2


async def wait_for_broker(link: Link, seconds: float, initial_delay: float) -> None:
    """Opens a link's first connection, in as many attempts as a broker needs that is being started.

    A refused login or virtual host is tried again, too: a broker that imports its definitions knows neither yet.

    Args:
        link: The link.
        seconds: How long to go on.
        initial_delay: The bound of the first delay, in seconds; it doubles up to 5 s, or a fifth of the time.

    Raises:
        ConfigurationError, TLSVerificationError, PluginError: No further attempt can succeed.
        LeveretError: Why the last attempt failed, when the time is over.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    longest = min(_LONGEST_DELAY, _LONGEST_SHARE * seconds)
    backoff = Backoff(min(initial_delay, longest), longest)
    sparse = SparseLog()
    deadline = asyncio.timeout_at(begun + seconds)
    failure: LeveretError | None = None
    try:
        async with deadline:
            while True:
                backoff.count_attempt()
                try:
                    await link()
                    break
                except LeveretError as error:
                    prospect = prospect_of(error)
                    if prospect is Prospect.NEVER:
                        raise
                    failure = error
                passed = loop.time() - begun
                if sparse.is_due(failure, passed):
                    logger.warning(
                        "connection %r: waiting for the broker for up to %g s (wait), %.1f s so far: %s",
                        link.name,
                        seconds,
                        passed,
                        failure,
                    )
                await asyncio.sleep(backoff.delay(prospect))
    except TimeoutError:
        if not deadline.expired():
            raise
        if failure is None:
            text = f"connection {link.name!r}: no broker answered within wait of {seconds:g} s"
            raise OperationTimeout(text) from None
        raise again(failure, f"{failure}; the broker was waited for {seconds:g} s (wait)") from failure
    if failure is not None:
        logger.info("connection %r: the broker is there after %.1f s", link.name, loop.time() - begun)

"""Calling the functions that `Producer.on_confirm` was given."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

from leveret.settings.functions import close_unawaited, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    ConfirmListener: TypeAlias = Callable[[int, bool], object]

__all__ = ["tell"]

logger = logging.getLogger("leveret.publishing")


def tell(listeners: Sequence[tuple[ConfirmListener, bool]], confirms: Sequence[tuple[int, bool, bool]]) -> None:
    """Tells listeners of confirms. Their errors are logged.

    Args:
        listeners: The functions, each with False for those that want basic.ack, and True for basic.nack.
        confirms: The delivery tag, `multiple` and whether it is a basic.nack, for each confirm.
    """
    # A listener may end itself.
    for tag, multiple, nack in confirms:
        for listener, nacks in tuple(listeners):
            if nack is nacks:
                try:
                    if close_unawaited(listener(tag, multiple)):
                        logger.warning("the confirm listener %s must not return a coroutine", name_of(listener))
                except Exception:
                    logger.exception("a confirm listener failed")

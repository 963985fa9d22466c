"""The functions that `Producer.on_confirm` was given, and calling them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

from leveret.settings.functions import close_unawaited, name_of, plain_function

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    ConfirmListener: TypeAlias = Callable[[int, bool], object]

__all__ = ["ConfirmListeners"]

logger = logging.getLogger("leveret.publishing")


class ConfirmListeners:
    """The confirm listeners of a producer. It is true when there are any.

    Args:
        changed: Called when a listener was added or has ended.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._entries: list[tuple[ConfirmListener, bool]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, listener: ConfirmListener, *, nacks: bool) -> Callable[[], None]:
        """Adds a listener, and returns a function that ends it; see `Producer.on_confirm`."""
        entry = (plain_function("listener", listener, "for each confirm"), nacks)
        self._entries.append(entry)
        self._changed()

        def remove() -> None:
            if entry in self._entries:
                self._entries.remove(entry)
                self._changed()

        return remove

    def tell(self, confirms: Sequence[tuple[int, bool, bool]]) -> None:
        """Tells the listeners of confirms. Their errors are logged.

        Args:
            confirms: The delivery tag, `multiple` and whether it is a basic.nack, for each confirm.
        """
        # A listener may end itself.
        for tag, multiple, nack in confirms:
            for listener, nacks in tuple(self._entries):
                if nack is nacks:
                    try:
                        if close_unawaited(listener(tag, multiple)):
                            logger.warning("the confirm listener %s must not return a coroutine", name_of(listener))
                    except Exception:
                        logger.exception("a confirm listener failed")

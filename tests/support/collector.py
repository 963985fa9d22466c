"""Python's garbage collector, as a test finds it and as it leaves it."""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import TYPE_CHECKING

from leveret import GcPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator


def frozen_by_others() -> int:
    """How many are frozen, but for those that live for ever: Python 3.12 freezes these, some hundred, itself."""
    count = gc.get_freeze_count()
    return 0 if sys.version_info[:2] == (3, 12) and count <= 1000 else count


@contextlib.contextmanager
def unchanged_collector() -> Iterator[None]:
    """A collector as a program finds it, with nothing frozen, and the same afterwards."""
    thresholds, frozen = gc.get_threshold(), frozen_by_others()
    callbacks = list(gc.callbacks)
    gc.unfreeze()
    try:
        yield
    finally:
        active, left = GcPolicy._active, (gc.get_threshold(), frozen_by_others(), gc.callbacks)
        if active is not None:
            active.close()
        gc.set_threshold(*thresholds)
        gc.callbacks[:] = callbacks
        if frozen:
            gc.freeze()
    assert active is None
    assert left == (thresholds, 0, callbacks)

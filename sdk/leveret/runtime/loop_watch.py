"""The pulse of an event loop: a call twice a second for each connection, and a warning of what blocked the loop.

The loop cannot look at itself while a function blocks it. A daemon thread looks then: when the pulse has not come for a
second, it reads which function the loop's thread is in. It costs nothing for a message.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

__all__ = ["PULSE", "LoopWatch"]

logger = logging.getLogger("leveret.runtime")

#: Seconds between two beats.
PULSE: Final = 0.5
#: Seconds beyond the pulse after which the loop counts as blocked.
_BLOCKED: Final = 1.0
#: Seconds between two looks of the thread.
_LOOK: Final = 0.25
#: A loop that is still blocked after so many seconds is warned of before it goes on, if it ever does.
_HANGS: Final = 10.0
#: At most one warning in so many seconds; the next one counts those that were left out.
_QUIET: Final = 10.0
#: Packages whose functions drive the loop; their callers are not what blocks it.
_DRIVERS: Final = ("asyncio", "uvloop")
_OWN: Final = ("leveret", "selectors", "concurrent", "threading")

_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWatch] = weakref.WeakKeyDictionary()


class LoopWatch:
    """Calls its members twice a second in an event loop, and warns when the loop was blocked for longer than a second.

    Use `LoopWatch.of(loop)`; there is one for each loop. It has a timer and a thread only while it has members.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._members: dict[Callable[[float], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        # How many beats there were; the thread compares. What it saw of the loop's thread when they stopped coming.
        self._beats = 0
        self._seen = ""
        self._thread_id = 0
        self._ended: threading.Event | None = None
        self._warned_at = float("-inf")
        self._unwarned = 0
        self._unwarned_seconds = 0.0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopWatch:
        """Returns the watch of a loop, from the loop's own thread."""
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = cls(loop)
        return watch

    def add(self, beat: Callable[[float], None]) -> None:
        """Calls a function at each beat from now on, with a monotonic time in seconds; it must not raise."""
        self._members[beat] = None
        if self._timer is None:
            self._due = time.monotonic()
            self._schedule()

    def remove(self, beat: Callable[[float], None]) -> None:
        """Ends what `add` began; it does nothing for a function that is no member."""
        self._members.pop(beat, None)
        if not self._members:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._ended is not None:
                self._ended.set()
                self._ended = None

    # ------------------------------------------------------------------ in the loop

    def _schedule(self) -> None:
        loop = self._loop()
        if loop is not None:
            self._due = time.monotonic() + PULSE
            self._timer = loop.call_later(PULSE, self._beat)

    def _beat(self) -> None:
        self._timer = None
        self._beats += 1
        now = time.monotonic()
        if now - self._due > _BLOCKED:
            self._was_blocked(now - self._due, now)
        self._seen = ""
        if self._ended is None:
            # Not with the first member: most scripts end before the first beat.
            self._ended = threading.Event()
            self._thread_id = threading.get_ident()
            name = "leveret loop watch"
            threading.Thread(target=_look_on, args=(weakref.ref(self), self._ended), name=name, daemon=True).start()
        for beat in list(self._members):
            if beat in self._members:
                beat(now)
        if self._members and self._timer is None:
            self._schedule()

    def _was_blocked(self, seconds: float, now: float) -> None:
        if now - self._warned_at < _QUIET:
            self._unwarned += 1
            self._unwarned_seconds += seconds
            return
        more = ""
        if self._unwarned:
            more = f" (and {self._unwarned} times for {self._unwarned_seconds:.1f} s in all before that)"
        self._warned_at, self._unwarned, self._unwarned_seconds = now, 0, 0.0
        logger.warning(
            "the event loop %s for %.1f s%s%s; meanwhile no message is handled and no heartbeat is sent",
            "was blocked" if self._seen else "did not run",
            seconds,
            f" by {self._seen}" if self._seen else "",
            more,
        )

    # ------------------------------------------------------------------ in the thread

    def look(self, seen_beats: int, looks: int) -> tuple[int, int] | None:
        """Looks at the loop's thread, when the beats have stopped coming; the watch's thread calls it.

        Args:
            seen_beats: How many beats there were when it looked last.
            looks: How often it found no more than that.

        Returns:
            Both for the next look; None when the loop is closed.
        """
        loop = self._loop()
        if loop is None or loop.is_closed():
            return None
        beats = self._beats
        if beats != seen_beats or not loop.is_running():
            return beats, 0
        looks += 1
        late = looks * _LOOK - PULSE
        if late >= _BLOCKED - 2 * _LOOK and not self._seen:
            frame = sys._current_frames().get(self._thread_id)
            where = where_of(frame)
            del frame  # it would keep the function's variables alive
            if self._beats == beats:
                self._seen = where
        if _HANGS <= late < _HANGS + _LOOK:
            by = self._seen or "an unknown function"
            logger.warning("the event loop has been blocked for %.0f s by %s", late, by)
        return beats, looks


def _look_on(reference: weakref.ref[LoopWatch], ended: threading.Event) -> None:
    """The thread: looks at the loop four times a second, until the watch has no members or the loop is closed."""
    state: tuple[int, int] | None = (0, 0)
    while state is not None and not ended.wait(_LOOK):
        watch = reference()
        if watch is None:
            return
        state = watch.look(*state)
        del watch


def where_of(frame: FrameType | None) -> str:
    """Names what a thread is in: the function that the event loop called, and the one that runs now.

    Args:
        frame: The thread's innermost frame.

    Returns:
        For example "shop.handlers.bill (handlers.py:17), in shop.tax.rate (tax.py:5)"; empty when it is in no function
        but the loop's own.
    """
    inner = outer = own = None
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _DRIVERS:
            break
        if package in _OWN:
            if inner is not None:
                break
            own = own or frame
        else:
            inner = inner or frame
            # Behind the outermost coroutine may be the frames that started a loop that has no frames itself.
            if outer is None or _is_coroutine(frame) or not _is_coroutine(outer):
                outer = frame
        frame = frame.f_back
    if inner is None or outer is None:
        return "" if own is None or own.f_globals.get("__name__") == "selectors" else _name_of(own)
    return _name_of(outer) if inner is outer else f"{_name_of(outer)}, in {_name_of(inner)}"


def _is_coroutine(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))


def _name_of(frame: FrameType) -> str:
    code = frame.f_code
    file = code.co_filename.rpartition("/")[2]
    return f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname} ({file}:{frame.f_lineno})"

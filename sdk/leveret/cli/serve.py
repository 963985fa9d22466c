"""`leveret run` in one process: finding the app, running it, and telling a parent how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib
import inspect
import json
import logging
import os
import pkgutil
import re
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from leveret.app.app import App
from leveret.app.process import run_process
from leveret.cli.failures import CommandFailed
from leveret.cli.summary import INTERVAL, Summary
from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["load", "log_to_stderr", "serve_as_worker", "serve_here"]

#: Moves to the beginning of a line of a terminal and clears it: the summary may be there.
_CLEAR_LINE: Final = "\r\x1b[K"
_LONGEST_REASON: Final = 1000
#: Bytes of reports that a parent has not read, above which no more are written: it is stopped, or busy.
_UNREAD: Final = 16_384


# ---------------------------------------------------------------------- finding the app


def load(target: str) -> App:
    """Imports a module from the current directory or the Python path, and takes the app out of it.

    Args:
        target: `module:attribute`; both may have dots.

    Returns:
        The app.

    Raises:
        CommandFailed: There is no such module or attribute, it is no app, or importing the module failed; the text says
            which, and what it may have been meant to be.
    """
    module_name, colon, attribute = target.partition(":")
    if re.search(r"[/\\]|\.py$", module_name):
        meant = re.sub(r"\.py$", "", module_name).strip("./\\").replace("/", ".").replace("\\", ".")
        raise CommandFailed(f"{target!r} names a file; write MODULE:ATTRIBUTE, {meant}:{attribute or 'app'}")
    if not colon or not all(name.isidentifier() for name in (*module_name.split("."), *attribute.split("."))):
        hint = f", for example {target}:app" if all(map(str.isidentifier, target.split("."))) else ""
        raise CommandFailed(f"{target!r} is not MODULE:ATTRIBUTE{hint}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name)
    passed = module_name
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise CommandFailed(f"{passed!r} has no attribute {name!r}{_meant(name, _names(found))}") from None
        passed += f"{'.' if passed != module_name else ':'}{name}"
    if not isinstance(found, App):
        what = f"class {found.__name__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
        apps = [name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, App)]
        hint = f"; did you mean {module_name}:{apps[0]}?" if len(apps) == 1 else ""
        raise CommandFailed(f"{target!r} is {what}, not a leveret.App{hint}")
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            parent, _, last = missing.rpartition(".")
            paths = getattr(sys.modules.get(parent), "__path__", []) if parent else [os.getcwd()]
            prefix = f"{parent}." if parent else ""
            others = [prefix + module.name for module in pkgutil.iter_modules(paths)]
            raise CommandFailed(f"there is no module {missing!r}{_meant(prefix + last, others)}") from None
        # It is the module's own fault: whoever writes it needs to see where.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
        if own and not isinstance(error, LeveretError):
            sys.stderr.write("".join(traceback.StackSummary.from_list(own).format()))
        place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
        reason = printable(f"{type(error).__name__}: {error}", _LONGEST_REASON)
        raise CommandFailed(f"module {name!r} cannot be imported: {reason}{place}") from error


def _names(holder: object) -> list[str]:
    # Apps before all else, because one of them is what was meant.
    names = [name for name in dir(holder) if not name.startswith("_")]
    apps = [name for name in names if isinstance(inspect.getattr_static(holder, name, None), App)]
    return apps or names


def _meant(name: str, others: Iterable[str]) -> str:
    others = list(others)
    nearest = difflib.get_close_matches(name, others, 1)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return ""


# ---------------------------------------------------------------------- what is logged


def log_to_stderr(*, quiet: bool) -> None:
    """Shows what Leveret logs on stderr, unless the app's module has chosen where logs go.

    Args:
        quiet: True for warnings and errors only.
    """
    ours = logging.getLogger("leveret")
    if ours.hasHandlers():
        return
    handler = logging.StreamHandler()
    clear = _CLEAR_LINE if sys.stderr.isatty() and not quiet else ""
    handler.setFormatter(logging.Formatter(f"{clear}%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.WARNING if quiet else logging.INFO)


# ---------------------------------------------------------------------- running


def _prepared(target: str, drain_timeout: float | None, *, quiet: bool) -> App:
    app = load(target)
    log_to_stderr(quiet=quiet)
    if drain_timeout is not None:
        app.drain_timeout = drain_timeout
    return app


def serve_here(target: str, drain_timeout: float | None, *, quiet: bool) -> None:
    """Runs an app in this process until a signal; shows a summary unless it is not wanted.

    Args:
        target: `module:attribute`.
        drain_timeout: Seconds, over the app's own; None leaves that.
        quiet: No summary, and only warnings are logged.

    Raises:
        CommandFailed: The app was not found.
        SystemExit: A second signal came.
        LeveretError: What no attempt can mend.
    """
    app = _prepared(target, drain_timeout, quiet=quiet)

    async def show(app: App, stop: asyncio.Event) -> None:
        with Summary(target, enabled=not quiet) as summary:
            while True:
                await asyncio.sleep(INTERVAL)
                counters = app.counters()
                summary.tick(counters, 1, counters.get("restarts", 0), stopping=stop.is_set())

    run_process(app, show, last=True)


def serve_as_worker(target: str, drain_timeout: float | None, fd: int, *, quiet: bool) -> None:
    """Runs an app as one of several processes, until a signal or until the parent hangs up.

    Args:
        target: `module:attribute`.
        drain_timeout: Seconds, over the app's own; None leaves that.
        fd: A stream socket to the parent. Each second a line of JSON goes out; the end of what comes in means to stop:
            the parent closed its half, or is gone.
        quiet: Only warnings are logged.

    Raises:
        SystemExit: The status is 1 after an error that no attempt can mend, which the parent was told.
    """
    try:
        parent = socket.socket(fileno=fd)
    except OSError as error:
        raise CommandFailed("--worker-fd is for processes that `leveret run` starts itself") from error
    with parent:
        # What handlers start must not keep the parent from noticing our end.
        parent.set_inheritable(False)
        try:
            app = _prepared(target, drain_timeout, quiet=quiet)
            run_process(app, _reporting(parent), last=True)
        except (LeveretError, CommandFailed) as error:
            line = {"failed": printable(str(error), _LONGEST_REASON)}
            with contextlib.suppress(OSError):  # the parent is gone
                parent.setblocking(False)
                parent.send(json.dumps(line).encode() + b"\n")
            raise SystemExit(1) from error


def _reporting(parent: socket.socket) -> Any:
    async def report(app: App, stop: asyncio.Event) -> None:
        # A socket of its own, because the transport closes it with the loop.
        reader, writer = await asyncio.open_unix_connection(sock=parent.dup())
        listening = asyncio.create_task(_listen(reader, stop))
        try:
            for line in _lines(app):
                if writer.is_closing():
                    break
                if writer.transport.get_write_buffer_size() < _UNREAD:
                    writer.write(line)
                await asyncio.sleep(INTERVAL)
            await listening
        finally:
            listening.cancel()
            await asyncio.wait((listening,), timeout=INTERVAL)
            writer.close()

    return report


def _lines(app: App) -> Iterator[bytes]:
    yield json.dumps({"ready": True, "longest_shutdown": app.longest_shutdown}).encode() + b"\n"
    while True:
        yield json.dumps({"counters": app.counters()}).encode() + b"\n"


async def _listen(reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    # It has no deadline: the parent says nothing as long as all is well.
    with contextlib.suppress(ConnectionError):
        await reader.read()
    stop.set()

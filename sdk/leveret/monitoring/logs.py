"""The log of a program: lines for people, or JSON for machines, on stderr or in a file."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FORMATS", "PROCESS_VARIABLE", "TEXT", "process_index", "setup_logging"]

#: The environment variable with the number of a process that `leveret run` started, from 0 up.
PROCESS_VARIABLE: Final = "LEVERET_PROCESS"
#: The lines for people.
TEXT: Final = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
#: What every record has. Anything else came with `extra=`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def process_index() -> int:
    """Returns the number of this process among those of `leveret run --processes`, from 0 up; 0 elsewhere."""
    text = os.environ.get(PROCESS_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else 0


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time (UTC), level, logger, message, process, and what came with `extra=`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line. A value that JSON does not know becomes its text."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            "process_index": process_index(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str, skipkeys=True)


#: The formatters by the names of `--log-format`.
FORMATS: Final[dict[str, Callable[[], logging.Formatter]]] = {
    "text": lambda: logging.Formatter(TEXT),
    "json": JsonFormatter,
}

_ours: logging.Handler | None = None


def setup_logging(
    level: int | str = logging.INFO,
    *,
    format: str = "text",  # noqa: A002 - the word that users look for
    file: str | Path | None = None,
) -> logging.Handler:
    """Sets up the log of a program in one line: its own records and those of Leveret, from `level` up.

        leveret.setup_logging()
        leveret.setup_logging("WARNING", format="json", file="orders.log")

    A library should not call this; a program that has set up `logging` itself does not need it. A further call replaces
    the handler of the call before. Other handlers of the root logger stay.

    Args:
        level: The least level, as `logging` names it.
        format: "text" for people, or "json": one object per line, with `time`, `level`, `logger`, `message`,
            `process`, `process_index`, and the report of a `leveret_report`.
        file: The file to append to; None: stderr. A file that is moved away (logrotate) is opened anew.

    Returns:
        The handler, which is on the root logger.

    Raises:
        ConfigurationError: The level or format is unknown, or the file cannot be written.
    """
    global _ours  # noqa: PLW0603 - the root logger is global, too
    if format not in FORMATS:
        raise ConfigurationError(f"format is one of {', '.join(FORMATS)}, not {format!r}", option="format")
    try:
        handler: logging.Handler = (
            logging.StreamHandler(sys.stderr) if file is None else WatchedFileHandler(file, encoding="utf-8")
        )
    except OSError as error:
        raise ConfigurationError(f"cannot write the log file {str(file)!r}: {error.strerror}", option="file") from error
    handler.setFormatter(FORMATS[format]())
    root = logging.getLogger()
    try:
        root.setLevel(level)
    except (ValueError, TypeError) as error:
        handler.close()
        raise ConfigurationError(f"level is a level of logging, not {level!r}", option="level") from error
    if _ours is not None:
        root.removeHandler(_ours)
        _ours.close()
    root.addHandler(handler)
    _ours = handler
    return handler

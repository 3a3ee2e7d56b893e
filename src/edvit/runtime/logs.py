"""Logs of the gateway and of devices: one event a line, as text for people or as JSON for machines.

Whatever a line has from the network is escaped in it. Images, tokens and the query of an address are never in one.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import threading
import time
import traceback
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, TextIO

from edvit.errors import printable
from edvit.runtime.request import current

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

FIELDS = "fields"
"""The attribute of a log record that has an event's own fields."""

_CHATTY = ("python_multipart",)
"""Libraries that warn of each malformed request: a client could fill the log. The request's own line says it."""

TAKEN = frozenset({"time", "level", "event", "logger", "traceback"})
"""What every line has; an event's own fields have other names."""


NO_HANDLE_S = 60.0
"""Seconds between two lines of one logger that say that no file handle is left."""


def event(log: logging.Logger, level: int, name: str, /, **fields: Any) -> None:
    """Log an event with fields of its own: text, numbers, and lists of them. None is left out."""
    if log.isEnabledFor(level):
        log.log(level, name, extra={FIELDS: {key: value for key, value in fields.items() if value is not None}})


class JsonLines(logging.Formatter):
    """A line of JSON a record: `time` (UTC, ISO 8601), `level`, `event`, `logger`, then the event's own fields.

    Every character outside ASCII is escaped, so that a line can neither be forged nor steer a terminal.

    Args:
        always: fields that every line has.
    """

    def __init__(self, **always: str) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **self._always,
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A line of text a record: local time, level, event, then the event's own fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        fields = [f"{name}={_plain(value)}" for name, value in fields_of(record).items()]
        line = " ".join([moment, record.levelname, printable(record.getMessage()), *fields])
        if record.exc_info:
            # Indented, so that no line of an error's text can be taken for an event.
            lines = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n").split("\n")
            line = "\n    ".join([line, *map(printable, lines)])
        return line


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """An event's own fields; among them the request that is worked on, where there is one."""
    fields = dict(getattr(record, FIELDS, {}))
    if (request := current()) is not None:
        fields.setdefault("request", request.id)
    return {f"{name}_" if name in TAKEN else name: value for name, value in fields.items()}


class SeldomWithoutHandles(logging.Filter):
    """Lets a record about missing file handles through once in `NO_HANDLE_S` for each logger, and all other records.

    Every connection that cannot be accepted raises such an error, so that anybody could fill the disk with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            return True
        now = time.monotonic()
        if now - self._last.get(record.name, -NO_HANDLE_S) < NO_HANDLE_S:
            return False
        self._last[record.name] = now
        return True


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_plain, value)) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value))
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)


def write_logs(
    form: LogFormat = "text", level: LogLevel | None = None, *, stream: TextIO | None = None, **always: str
) -> None:
    """Send the log of this process to standard error, or to `stream`.

    Args:
        form: `json` also sends warnings and uncaught errors through the log, so that every line is JSON.
        level: the least that is written; None is `info` in JSON and `warning` in text.
        always: fields that every line of JSON has.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(**always) if form == "json" else TextLines())
    handler.addFilter(SeldomWithoutHandles())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    root.setLevel((level or ("info" if form == "json" else "warning")).upper())
    if form == "json":
        logging.captureWarnings(True)
        sys.excepthook = _on_uncaught
        threading.excepthook = _on_uncaught_in_thread


def is_json() -> bool:
    """Whether `write_logs` has been told to write JSON: everything that is said is then an event of the log."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).error("an error was not caught", exc_info=(kind, error, trace))


def _on_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _on_uncaught(args.exc_type, args.exc_value, args.exc_traceback)

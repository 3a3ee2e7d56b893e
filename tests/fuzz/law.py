"""What every parser keeps to: a value or the sender's error, within seconds."""

from __future__ import annotations

import signal
from collections.abc import Callable

from edvit.errors import EdvitError

LIMIT_S = 20
"""Seconds an input may take; allows for a busy machine."""


def check(parser: Callable[[bytes], None], data: bytes) -> None:
    """Raises whatever breaks the law: another exception, an error that would be status 500, or TimeoutError."""

    is_late = False

    def late(*_: object) -> None:
        nonlocal is_late
        is_late = True
        raise TimeoutError(f"the parser has worked for {LIMIT_S} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    try:
        parser(data)
    except EdvitError as error:
        if is_late:  # a parser that turns every OSError into an EdvitError does so with a TimeoutError
            raise TimeoutError(f"the parser has worked for {LIMIT_S} s") from error
        if error.http_status == 500:
            raise AssertionError("the sender's input is told as the program's own fault") from error
    finally:
        signal.alarm(0)

"""Waiting for what happens in other threads and processes."""

from __future__ import annotations

import asyncio
import time


def eventually(condition, timeout_s=20.0):
    """The first true value of `condition()`; fails after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
    return value


async def eventually_async(condition, timeout_s=20.0):
    """As `eventually`, within an event loop."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.01)
    return value

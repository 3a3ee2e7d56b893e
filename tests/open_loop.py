"""Clients that ask at a fixed rate, whatever the answers take: as independent users do."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass

from edvit.runtime.http.client import Client
from waiting import eventually

LONG_S = 120.0


@dataclass(frozen=True)
class Asked:
    """One request and what came of it.

    Attributes:
        which: the image's index.
        due: when it was to be sent, `time.monotonic()`.
        seconds: from then to the answer.
        answer: `Predicted`; None where an error came.
    """

    which: int
    due: float
    seconds: float
    answer: object = None
    error: Exception | None = None


class OpenLoop:
    """Asks for one image after the other, `rate` times a second, until it is closed.

    Args:
        url: of the gateway.
        images: uint8 `[batch, channels, height, width]`.
        workers: requests that can be under way at a time.
        entered: makes a context that each worker is in, such as a network namespace.
    """

    def __init__(self, url, images, *, rate=20.0, workers=64, entered=contextlib.nullcontext):
        self.asked = []
        self._url, self._images, self._rate, self._entered = url, images, rate, entered
        self._due = queue.SimpleQueue()
        self._end = threading.Event()
        self._clock = threading.Thread(target=self._tick)
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in (*self._workers, self._clock):
            thread.start()

    def _tick(self):
        start, count = time.monotonic(), 0
        while not self._end.wait(max(0.0, start + count / self._rate - time.monotonic())):
            self._due.put((count % len(self._images), start + count / self._rate))
            count += 1
        for _ in self._workers:
            self._due.put(None)

    def _work(self):
        with self._entered(), Client(self._url, timeout_s=LONG_S) as client:
            while (job := self._due.get()) is not None:
                which, due = job
                answer = error = None
                try:
                    answer = client.predict_array(self._images[which])
                except Exception as problem:
                    error = problem
                self.asked.append(Asked(which, due, time.monotonic() - due, answer, error))

    def more(self, count, condition=lambda answer: True):
        """Wait for so many further answers of a kind."""
        start = len(self.asked)

        def enough():
            answers = [asked.answer for asked in self.asked[start:] if asked.answer is not None]
            return sum(map(condition, answers)) >= count

        eventually(enough, LONG_S)

    def close(self):
        """Wait until every request has come to its end."""
        self._end.set()
        for thread in (self._clock, *self._workers):
            thread.join(LONG_S)
            assert not thread.is_alive(), "a request was lost"

    def problems(self, reference):
        """What is wrong with what came, one line each: errors, and answers that are not the reference's."""
        found = [str(asked.error) for asked in self.asked if asked.error is not None]
        answers = [(asked.which, asked.answer) for asked in self.asked if asked.answer is not None]
        return found + [problem for which, answer in answers if (problem := reference.problem(which, answer))]

"""Clients of a gateway that ask one request after the other."""

from __future__ import annotations

import threading

from edvit.runtime.http.client import Client
from waiting import eventually

LONG_S = 120.0


class ClosedLoop:
    """Runs until it is closed; every answer is kept with the image it is for.

    Attributes:
        answers: `(which image, answer)`.
        errors: what was raised in place of an answer.
    """

    def __init__(self, url, images, clients=8):
        self.answers, self.errors = [], []
        self._url, self._images = url, images
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, which):
        with Client(self._url, timeout_s=LONG_S) as client:
            while not self._end.is_set():
                try:
                    self.answers.append((which, client.predict_array(self._images[which])))
                except Exception as error:
                    self.errors.append(error)

    def more(self, count, condition=lambda answer: True):
        """Wait for so many further answers of a kind, or for an error."""
        start = len(self.answers)
        eventually(lambda: self.errors or sum(condition(answer) for _, answer in self.answers[start:]) >= count, LONG_S)

    def close(self):
        self._end.set()
        for thread in self._threads:
            thread.join(LONG_S)
            assert not thread.is_alive(), "a request was lost"

"""Work that is killed after a step, and goes on from its checkpoint."""

from __future__ import annotations

import itertools

import pytest
import torch

from edvit.builder.jobs.checkpoint import Checkpoint


class KilledError(Exception):
    """Stands for what ends a process."""


def interrupted(work, folder, step):
    """What a work gives that is killed after a step and run again; and the step that it went on from.

    Time is counted in steps: there is one checkpoint, after `step` steps.
    """
    steps, calls = itertools.count(), itertools.count(1)

    def kill(done, total):
        if next(calls) > step:
            raise KilledError

    with pytest.raises(KilledError):
        work(checkpoint=Checkpoint(folder, "key", every_s=step, clock=lambda: next(steps)), progress=kill)
    torch.manual_seed(12345)  # another process has other random states
    seen = []
    result = work(checkpoint=Checkpoint(folder, "key"), progress=lambda done, total: seen.append(done))
    return result, seen[0]

"""A tethered process ends with its parent, however the parent ends."""

import contextlib
import subprocess
import sys

import psutil
import pytest

from serving import alive, wait_for

# A parent that starts a tethered `edvit` command which never ends by itself, and tells its process id.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
{rest}
"""
CHILD = """
import time, edvit.cli
edvit.cli.main = lambda: {handler}time.sleep(600)
from edvit.cli import tether
tether.main()
"""
STUBBORN = "__import__('signal').signal(15, __import__('signal').SIG_IGN) and None or "


@pytest.mark.parametrize("handler", ["", STUBBORN], ids=["willing", "ignores-sigterm"])
@pytest.mark.parametrize("rest", ["", "time.sleep(600)"], ids=["exits", "is-killed"])
def test_ends_with_its_parent(handler, rest):
    child = CHILD.format(handler=handler)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child=child, rest=rest)], stdout=subprocess.PIPE, text=True
    )
    tethered = None
    try:
        tethered = psutil.Process(int(parent.stdout.readline()))
        if rest:
            assert alive(tethered)
            parent.kill()
        parent.wait(20)
        assert wait_for(lambda: not alive(tethered))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        if tethered is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                tethered.kill()

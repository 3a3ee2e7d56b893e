"""Runs an edvit command that ends when the process that started it does: `python -m edvit.cli.tether device ...`.

The tether is standard input: its other end closes when the parent ends, however it ends. Unlike Linux's
PR_SET_PDEATHSIG it does not fire when only the thread that started the process ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

GRACE_S = 1.0


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def main() -> None:
    from edvit.cli import main as run_command

    threading.Thread(target=_end_with_parent, name="edvit-tether", daemon=True).start()
    sys.argv[0] = "edvit"
    run_command()


if __name__ == "__main__":
    main()

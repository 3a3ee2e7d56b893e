"""How the threads of PyTorch wait for each other.

This module does not import torch: what it sets counts only before the OpenMP library is loaded.
"""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Threads of OpenMP sleep while they wait, unless the user has chosen another `OMP_WAIT_POLICY`.

    By default they spin. Beside other work the thread that is waited for has no core then, because the one that waits
    for it burns it: six times the processor time for the same result.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

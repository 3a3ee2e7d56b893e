"""Runs a command as systemd would with our settings: `python sandbox.py CALLS COMMAND ...`.

CALLS is a file with the names of the system calls that are allowed; another one is refused (EPERM). No memory becomes
executable that was not, and no program gains rights.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
REFUSE, ALLOW = 0x00050000 | errno.EPERM, 0x7FFF0000

libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p

filter_ = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE)))
for name in Path(sys.argv[1]).read_text().split():
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert seccomp.seccomp_rule_add(filter_, ctypes.c_uint32(ALLOW), number, 0) == 0, name
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # Linux 6.3 and newer; systemd does it by another filter on older ones
assert seccomp.seccomp_load(filter_) == 0
os.execvp(sys.argv[2], sys.argv[2:])

"""A disk of a megabyte under a folder, for one process: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import functools
import subprocess

MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && shift && exec "$@"'


def within(folder, size="1m"):
    """What is put before a command, so that for it `folder` is an empty disk of this size."""
    return ["unshare", "--mount", "/bin/sh", "-c", MOUNT, str(folder), size]


def resize(pid, folder, size):
    """Give the disk that a process has another size."""
    command = ["nsenter", "--mount", "--target", str(pid), "mount", "-o", f"remount,size={size}", str(folder)]
    subprocess.run(command, check=True)


@functools.cache
def lack():
    """Why there are no such disks here, one line; empty where there are."""
    try:
        done = subprocess.run([*within("/tmp"), "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"a small disk needs unshare ({error.strerror})"
    return "" if done.returncode == 0 else f"no mount namespaces here: {done.stderr.strip()}"

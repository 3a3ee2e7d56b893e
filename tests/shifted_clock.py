"""A wall clock that is off, for one process: a shim before the C library, which Python, Zenoh and its TLS ask."""

from __future__ import annotations

import shutil
import subprocess

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) { const char *text = getenv("CLOCK_OFFSET_S"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *there) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (there) *there = precise.tv_sec;
    return precise.tv_sec;
}
"""

LACK = "" if shutil.which("cc") else "a clock that is off needs a C compiler"


def off_by(seconds, folder):
    """What is put before a command, so that its wall clock is off by so many seconds. `folder`: for the shim."""
    library = folder / "shifted_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", library, "-ldl"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return ["env", f"LD_PRELOAD={library}", f"CLOCK_OFFSET_S={seconds}"]

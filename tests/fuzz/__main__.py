"""Fuzz one parser with atheris: python -m fuzz NAME MINUTES, with PYTHONPATH=src:tests.

Prints executions, coverage, resident memory and the slowest input; an input that breaks the law is written to corpus/.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edvit", "yaml", "python_multipart", "PIL"]):
    from fuzz.law import check
    from fuzz.parsers import PARSERS, seeds

CORPUS = Path(__file__).with_name("corpus")


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(name: str, minutes: float) -> None:
    logging.disable()  # lines of a million requests that are refused
    work = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    stored = [path.read_bytes() for path in (CORPUS / name).glob("*")]
    for seed in seeds(name) + stored:
        (work / hashlib.sha256(seed).hexdigest()[:12]).write_bytes(seed)
    count, slowest, slowest_size, start = 0, 0.0, 0, 0.0
    found: dict[str, Path] = {}
    began, told = time.monotonic(), 0.0

    def one(data: bytes) -> None:
        nonlocal count, slowest, slowest_size, start, told
        before = time.monotonic()
        try:
            check(PARSERS[name], data)
        except Exception as error:
            kind = f"{type(error).__name__}: {str(error)[:80]}"
            if type(error).__name__ not in found:
                path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                found[type(error).__name__] = path
                print(f"FOUND {kind} in {path.name}", flush=True)
        took = time.monotonic() - before
        count += 1
        if count == 1000:
            start = resident_mb()
        if took > slowest:
            slowest, slowest_size = took, len(data)
        if before - told > 10:
            told = before
            print(
                f"{name}: {count} executions in {before - began:.0f} s, {start:.0f} MB after 1000, "
                f"{resident_mb():.0f} MB now, slowest {slowest:.3f} s ({slowest_size} bytes)",
                flush=True,
            )

    options = [f"-max_total_time={int(minutes * 60)}", "-max_len=8192", "-rss_limit_mb=2048", str(work)]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

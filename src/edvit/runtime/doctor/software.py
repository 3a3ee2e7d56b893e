"""Python, the libraries that edvit needs, and whether the engine computes what it should."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from edvit import __version__
from edvit.runtime.doctor.check import Check, bad, good

OLDEST_PYTHON = (3, 10)

MODULES = {"eclipse-zenoh": "zenoh", "pillow": "PIL", "pyyaml": "yaml", "python-multipart": "python_multipart"}
"""The module of a distribution, where it has another name."""

EXTRAS = {
    "keys": "`edvit keys`",
    "serve": "`edvit serve`, `edvit predict`",
    "audio": "sounds",
    "build": "`edvit build`",
}
"""What an extra is for."""

WRONG_WHEEL = "its wheel was built for another processor: install one for this machine, or tell its makers"

LOADER = """
import importlib, sys
for name in sys.argv[1:]:
    print("+", name, flush=True)
    try:
        importlib.import_module(name)
    except Exception as error:
        print("-", f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""
LOAD_S = 120.0


@dataclass(frozen=True)
class Requirement:
    """A line of the package's own metadata: `pillow>=10.1`, perhaps of an extra."""

    distribution: str
    oldest: tuple[int, ...]
    extra: str | None

    @property
    def module(self) -> str:
        return MODULES.get(self.distribution, self.distribution.replace("-", "_"))


def requirements() -> list[Requirement]:
    """What the installed package says that it needs."""
    found = []
    for line in metadata.requires("edvit") or ():
        match = re.match(r"([A-Za-z0-9._-]+)>=([\d.]+)", line.replace(" >=", ">="))
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if match is not None:
            found.append(Requirement(match[1].lower(), _numbers(match[2]), extra[1] if extra else None))
    return found


def check_python() -> Check:
    running = ".".join(map(str, sys.version_info[:3]))
    says = f"edvit {__version__}, Python {running}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return bad("python", says, "install Python 3.10 or newer, and edvit in it")
    return good("python", says)


def check_libraries() -> list[Check]:
    """One line for each library that every command needs, and one for the extras."""
    needed = [requirement for requirement in requirements() if requirement.extra is None]
    problems = load_problems([requirement.module for requirement in needed])
    return [_library(requirement, problems.get(requirement.module)) for requirement in needed] + [_extras()]


def check_engine() -> Check:
    """ONNX Runtime runs a tiny model in a process of its own, in floats and in integers."""
    command = [sys.executable, "-m", "edvit.runtime.doctor.selftest"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, check=False)
    except subprocess.TimeoutExpired:
        return bad("engine", f"no result within {LOAD_S:g} s", "look what else runs on this machine")
    if done.returncode < 0:
        return bad("engine", f"ended by {_signal(done.returncode)}", WRONG_WHEEL)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"differs from numpy by {done.stdout.strip()}"]
        return bad("engine", lines[-1], 'install ONNX Runtime again: pip install --force-reinstall "onnxruntime>=1.23"')
    return good(
        "engine", f"a test model gives what numpy gives (largest difference {float(done.stdout):.0e}); int8 too"
    )


def load_problems(modules: Sequence[str]) -> dict[str, str]:
    """Import modules in processes of their own; what went wrong, by module. One that kills its process is known too."""
    problems: dict[str, str] = {}
    left = list(modules)
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-c", LOADER, *left], capture_output=True, text=True, timeout=LOAD_S, check=False
            )
            said, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            said, code = _text(error.stdout), 1
        begun = ""
        for line in said.splitlines():
            kind, _, text = line.partition(" ")
            if kind == "+":
                begun = text
            elif kind == "-" and begun:
                problems[begun] = text
        if code == 0:
            break
        dead = begun or left[0]
        problems[dead] = f"ended by {_signal(code)}" if code < 0 else "does not load"
        left = left[left.index(dead) + 1 :]
    return problems


def _library(requirement: Requirement, problem: str | None) -> Check:
    name = requirement.distribution
    wanted = ".".join(map(str, requirement.oldest))
    install = f'pip install "{name}>={wanted}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return bad(name, "is missing", install)
    if problem is not None:
        return bad(name, f"{version} does not load: {problem}", WRONG_WHEEL if "ended by" in problem else install)
    if _numbers(version) < requirement.oldest:
        return bad(name, f"{version} is too old", install)
    return good(name, version)


def _extras() -> Check:
    here, missing = [], []
    for extra, use in EXTRAS.items():
        lacking = [one.distribution for one in requirements() if one.extra == extra and not _installed(one)]
        if lacking:
            missing.append(f"{extra} (for {use})")
        else:
            here.append(extra)
    says = f"installed: {', '.join(here) or 'none'}"
    if missing:
        says += f"; not installed, and not needed on a device: {', '.join(missing)}"
    return good("extras", says)


def _installed(requirement: Requirement) -> bool:
    try:
        return _numbers(metadata.version(requirement.distribution)) >= requirement.oldest
    except metadata.PackageNotFoundError:
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _leading(version))


def _leading(version: str) -> Iterator[str]:
    for part in version.split("."):
        match = re.match(r"\d+", part)
        if match is None:
            return
        yield match[0]


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _text(data: str | bytes | None) -> str:
    return data.decode(errors="replace") if isinstance(data, bytes) else data or ""

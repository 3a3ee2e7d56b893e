"""A Raspberry Pi 4's world on this machine: Debian for arm64 with edvit's wheel, run by qemu as a Cortex-A72.

Nothing of it is installed by running it: debootstrap unpacks Debian's packages, pip unpacks the wheels for aarch64, and
qemu runs the root's Python with the root as its prefix (`-L`). So it takes no binfmt_misc, no chroot and no mount. A
file that the root lacks is looked for on this machine. Processes that the emulated Python starts are not emulated;
edvit starts none on a device.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CPU = "cortex-a72"
SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of that suite."""
NEWEST_GLIBC = 36
"""Its C library is 2.36: wheels for newer ones do not run there."""
DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CORES = 4
CPUINFO = """\
processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""What a Raspberry Pi 4 says of a core in /proc/cpuinfo."""
CORE_FILES = {
    "cpufreq/cpuinfo_max_freq": "1500000",
    "cpufreq/cpuinfo_min_freq": "600000",
    "topology/physical_package_id": "0",
    "topology/cluster_cpus_list": "0-3",
    "topology/core_siblings_list": "0-3",
    "cache/index2/level": "2",
    "cache/index2/size": "1024K",
    "cache/index2/shared_cpu_list": "0-3",
}
"""What it says of each core in /sys/devices/system/cpu/cpu*."""
UNPACK_S = 300
"""After so many seconds each of the steps that make the root is given up."""


class CannotRunError(Exception):
    """It cannot be run here; the message is one line that says why and what to do."""


class EmulatedPi4:
    """Debian's root with edvit in it.

    Args:
        system: the root.
        packages: folders that Python imports from.
        home: the home folder of what runs in it.
    """

    def __init__(self, system, packages, home):
        self._system = system
        self._packages = packages
        self._home = home

    def command(self, *words, cpu=CPU):
        """The command that runs the root's Python with these words."""
        python = self._system / "usr" / "bin" / f"python{PYTHON}"
        return [emulator(), "-cpu", cpu, "-L", str(self._system), str(python), *map(str, words)]

    @property
    def environment(self):
        """The environment of that command: nothing of this machine's own."""
        return {
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, self._packages)),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *words, cpu=CPU, timeout=240):
        """Run the root's Python to its end; returns subprocess.CompletedProcess with text output."""
        return subprocess.run(
            self.command(*words, cpu=cpu), env=self.environment, capture_output=True, text=True, timeout=timeout
        )


def emulated_pi4(cache, scratch):
    """The root with the edvit of this checkout.

    Args:
        cache: folder that keeps Debian and the dependencies; what is there is used again.
        scratch: an empty folder, for edvit itself and its home folder.

    Raises:
        CannotRunError: a program or a right is missing, or Debian's packages cannot be fetched.
    """
    cache.mkdir(exist_ok=True)
    emulator()
    system = kept(cache / f"{SUITE}-{key_of(DEBIAN_PACKAGES)}", unpack_debian)
    wheels, edvit = scratch / "wheels", scratch / "edvit"
    pip("wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
    install(edvit, "--no-deps", *wheels.glob("edvit-*.whl"))
    requirements = requirements_of_a_device(edvit)
    packages = kept(cache / f"packages-{key_of(requirements)}", lambda target: install(target, *requirements))
    home = scratch / "home"
    home.mkdir()
    return EmulatedPi4(system, [edvit, packages], home)


def emulator():
    """The program that runs aarch64's programs. Raises CannotRunError."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        raise CannotRunError("qemu-aarch64 is missing: apt install debootstrap qemu-user-static debian-archive-keyring")
    return found


def kept(folder, fill):
    """The folder, filled unless it was filled before; half a folder is never taken for a whole one."""
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        fill(part)
        part.rename(folder)
    return folder


def key_of(words):
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def unpack_debian(target):
    """Debian for arm64, unpacked: no package's own scripts are run. Raises CannotRunError."""
    program = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or not KEYRING.exists():
        raise CannotRunError("debootstrap is missing: apt install debootstrap qemu-user-static debian-archive-keyring")
    as_root = [] if os.geteuid() == 0 else ["fakeroot"]
    if as_root and shutil.which("fakeroot") is None:
        raise CannotRunError("debootstrap needs root or fakeroot: apt install fakeroot")
    include = f"--include={','.join(DEBIAN_PACKAGES)}"
    options = ["--foreign", "--force-check-gpg", "--arch=arm64", "--variant=minbase", include]
    command = [*as_root, program, *options, SUITE, str(target), *mirror()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=UNPACK_S)
    except subprocess.TimeoutExpired:
        raise CannotRunError(f"debootstrap took over {UNPACK_S} s") from None
    if done.returncode:
        raise CannotRunError(f"debootstrap failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    for archive in (target / "var/cache/apt/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", archive, target], check=True)
        archive.unlink()
    describe_processor(target)


def describe_processor(target):
    """Files that say of the processor what a Raspberry Pi 4 says: ONNX Runtime reads them, and crashes over x86's."""
    (target / "proc/cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(CORES)))
    cores = target / "sys/devices/system/cpu"
    files = {name: f"0-{CORES - 1}" for name in ("possible", "present", "online")}
    files |= {f"cpu{core}/{name}": text for core in range(CORES) for name, text in CORE_FILES.items()}
    for name, text in files.items():
        (cores / name).parent.mkdir(parents=True, exist_ok=True)
        (cores / name).write_text(f"{text}\n")


def mirror():
    """The mirror of Debian that apt uses here, as one word; none where it uses no such, for debootstrap's default."""
    if shutil.which("apt-get") is None:
        return []
    asked = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True)
    return [line for line in asked.stdout.splitlines() if re.fullmatch(r"https?://.*/debian/?", line)][:1]


def requirements_of_a_device(folder):
    """What `pip install edvit[keys]` installs beside edvit, of the edvit in the folder; pip's words."""
    (edvit,) = importlib.metadata.distributions(name="edvit", path=[str(folder)])
    needs = map(Requirement, edvit.requires)
    return [
        f"{need.name}{need.specifier}" for need in needs if not need.marker or need.marker.evaluate({"extra": "keys"})
    ]


def install(target, *words):
    """Unpack wheels for the root's Python into a folder."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(NEWEST_GLIBC, 16, -1)]
    platforms = [word for tag in (*tags, "manylinux2014_aarch64") for word in ("--platform", tag)]
    python = ["--python-version", PYTHON, "--implementation", "cp"]
    abis = [word for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    pip("install", "--only-binary=:all:", *platforms, *python, *abis, "--target", target, *words)


def pip(*words):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, timeout=UNPACK_S)

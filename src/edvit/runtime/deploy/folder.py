"""The folder of the served bundle, and how a new bundle takes its place.

NAME             the served bundle
NAME.previous    the one before it, until the next deploy
.NAME-deploy     a new one, while it arrives and devices load it
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edvit.bundle import MANIFEST
from edvit.errors import DeployError

SPARE_BYTES = 50_000_000
"""Free disk that stays free when a new bundle has arrived."""


class BundleFolder:
    """Where a gateway's bundle lies. One process at a time can deploy to it.

    Args:
        path: of the bundle that is served, or that was when a gateway was killed.

    Attributes:
        path, previous, incoming: as the table above says, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.previous = self.path.with_name(f"{self.path.name}.previous")
        self.incoming = self.path.with_name(f".{self.path.name}-deploy")

    def recover(self) -> None:
        """Undo what a killed deploy left; nothing while another process deploys. Call it before the bundle is read.

        Raises:
            DeployError: the folder's place is empty, because another process puts a new bundle there just now.
        """
        with contextlib.suppress(OSError):
            if not self.path.exists() and (self.previous / MANIFEST).is_file():
                with _locked(self.previous):
                    self.previous.rename(self.path)
            if self.incoming.exists():
                with contextlib.suppress(DeployError), _locked(self.path):
                    shutil.rmtree(self.incoming)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """For the block, `incoming` is an empty folder to write to; what is left of it afterwards is removed.

        Raises:
            DeployError: another process deploys to this folder, what lies at `previous` is no bundle, or nothing can
                be written beside the bundle.
        """
        if self.previous.exists() and not (self.previous / MANIFEST).is_file():
            raise DeployError(f"{self.previous}: exists and is no bundle; move it away, and deploy again")
        with _locked(self.path):
            try:
                shutil.rmtree(self.incoming, ignore_errors=True)
                self.incoming.mkdir(mode=0o755)
            except OSError as error:
                raise DeployError(
                    f"the gateway cannot write beside its bundle, {self.path} ({error.strerror}): let it, or start it "
                    "again with the new bundle"
                ) from None
            try:
                yield
            finally:
                shutil.rmtree(self.incoming, ignore_errors=True)

    def check_room(self, size: int) -> None:
        """Raises DeployError unless the disk has room for so many bytes more."""
        free = shutil.disk_usage(self.path.parent).free
        if free < size + SPARE_BYTES:
            raise DeployError(
                f"the new bundle has {size / 1e6:,.1f} MB, and the gateway's disk has room for "
                f"{max(0, free - SPARE_BYTES) / 1e6:,.1f} MB: free some at {self.path.parent}"
            )

    def take_place(self) -> None:
        """Put the new bundle in the place of the served one, which stays at `previous`.

        A process that is killed in between leaves the place empty, and `recover` puts the old bundle back.

        Raises:
            DeployError: it cannot be done; the old bundle is where it was.
        """
        try:
            if self.previous.exists():
                shutil.rmtree(self.previous)
            self.path.rename(self.previous)
            try:
                self.incoming.rename(self.path)
            except BaseException:
                self.previous.rename(self.path)
                raise
            _sync(self.path.parent)
        except OSError as error:
            raise DeployError(f"{self.path}: the new bundle cannot take its place ({error.strerror})") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which goes with it when it is renamed, and which ends with the process."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DeployError(f"{folder}: cannot be opened ({error.strerror}); restore the bundle's folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeployError(f"{folder}: another gateway takes over a new bundle there: try again later") from None
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Takes new bundles over HTTP, one at a time, and rolls each out in a thread of its own."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack

from anyio import to_thread
from starlette.requests import Request

from edvit.bundle import Bundle, read_bundle
from edvit.errors import BundleError, DeployError, EdvitError, ServiceError, UnsupportedMediaError
from edvit.runtime.deploy.folder import BundleFolder
from edvit.runtime.deploy.progress import Progress
from edvit.runtime.deploy.rollout import changes, check_fits, roll_out
from edvit.runtime.deploy.switch import Serving, Switch
from edvit.runtime.deploy.transfer import LENGTH_BYTES, Incoming, size_of
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.lease import Lease
from edvit.runtime.http.answers import DeployAnswer
from edvit.runtime.http.app import create_app
from edvit.runtime.http.body import BUNDLE
from edvit.runtime.http.upload import drain
from edvit.runtime.http.uploads import Uploads

log = logging.getLogger(__name__)

MakeGateway = Callable[[Bundle, tuple[str, ...], Collection[str]], Gateway]
"""Makes the gateway of a bundle beside those with these digests, while the devices with these names are away."""


class Deploys:
    """What one gateway serves, and the deploys that exchange it.

    Args:
        bundle: what is served first.
        lease: says which bundle this gateway serves.
        make_gateway: makes the gateway of a bundle.

    Attributes:
        switch: what is served.
    """

    def __init__(self, bundle: Bundle, lease: Lease, make_gateway: MakeGateway) -> None:
        self._folder = BundleFolder(bundle.path)
        self._lease = lease
        self._make_gateway = make_gateway
        self.switch = Switch(self._serve(bundle, None, ()))
        self._last: Progress | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()

    def _serve(self, bundle: Bundle, before: Serving | None, away: Collection[str]) -> Serving:
        """What serves a bundle, beside what serves another one."""
        beside = () if before is None else (before.gateway.bundle.digest,)
        gateway = self._make_gateway(bundle, beside, away)
        how = bundle.manifest.preprocessing
        try:
            if before is not None and before.gateway.bundle.manifest.preprocessing == how:
                uploads = before.uploads
            else:
                uploads = Uploads(how)
        except BaseException:
            gateway.close()
            raise
        return Serving(gateway, uploads, create_app(gateway, bundle.manifest, uploads, self))

    def answer(self) -> DeployAnswer:
        """The deploy that is under way, or the last one."""
        serving = self.switch.current.gateway.bundle.digest
        return DeployAnswer(serving=serving) if self._last is None else self._last.answer(serving)

    async def receive(self, request: Request, *, timeout_s: float, check: bool) -> DeployAnswer:
        """Take the bundle that a request brings; it is rolled out after this returns.

        Nothing is done for the bundle that is served already.

        Args:
            request: none of its body has been read yet.
            timeout_s: seconds that devices may take to load it.
            check: the body has the manifest alone; say whether the bundle would be taken, and take nothing.

        Raises:
            DeployError: another deploy is under way, or the bundle cannot be stored.
            BundleError: it is damaged, or of another fleet.
            MemoryLimitError: a device has no room for it beside the old one.
            UnsupportedMediaError, TooLargeError, SlowUploadError: the body is not acceptable.
        """
        stream = request.stream()
        try:
            # A page of another origin cannot send this type from a browser without being asked.
            if request.headers.get("content-type") != BUNDLE:
                raise UnsupportedMediaError(f"send a bundle with `edvit deploy`, as {BUNDLE}")
            return await self._receive(request, stream, timeout_s, check)
        except EdvitError:
            await drain(stream)
            raise

    async def _receive(
        self, request: Request, stream: AsyncIterator[bytes], timeout_s: float, check: bool
    ) -> DeployAnswer:
        progress, before = self._begin()
        try:
            with ExitStack() as held:
                bundle = await self._take(request, stream, progress, check, held)
                if bundle is not None:
                    until = time.monotonic() + timeout_s
                    self._thread = threading.Thread(
                        target=self._roll_out,
                        args=(bundle, progress, until, held.pop_all()),
                        name="deploy",
                        daemon=True,
                    )
                    self._thread.start()
                    return progress.answer(self.switch.current.gateway.bundle.digest)
        except BaseException:
            self._last = before  # it has come to nothing, of which the client is told now
            raise
        self._last = before
        return progress.answer(self.switch.current.gateway.bundle.digest).model_copy(
            update={"state": "none", "id": None}
        )

    def _begin(self) -> tuple[Progress, Progress | None]:
        """Be the one deploy that is under way; also the last one before. Raises DeployError for another one."""
        progress = Progress()
        with self._lock:
            if self._closing.is_set():
                raise DeployError("the gateway ends: deploy again when it has started again")
            if self._last is not None and self._last.under_way:
                raise DeployError("another deploy is under way: wait for its end (GET /deploy says how far it is)")
            before, self._last = self._last, progress
        return progress, before

    async def _take(
        self, request: Request, stream: AsyncIterator[bytes], progress: Progress, check: bool, held: ExitStack
    ) -> Bundle | None:
        """The bundle that arrives, in a folder that is there until `held` is closed; None where none is to be taken."""
        incoming = Incoming(stream)
        text, manifest = await incoming.manifest()
        old = self.switch.current.gateway
        digest = hashlib.sha256(text).hexdigest()
        size = size_of(manifest)
        progress.is_of(digest)
        if digest == old.bundle.digest:
            await drain(stream)
            return None
        if (other := self._lease.in_charge()) is not None:
            raise DeployError(f"the gateway on {other.host} is in charge of the fleet: deploy to that one")
        check_fits(manifest, old.bundle.manifest, old.devices())
        self._folder.check_room(size)
        if check:
            return None
        announced = request.headers.get("content-length")
        if announced is not None and announced != str(LENGTH_BYTES + len(text) + size):
            raise BundleError("the body has another length than its manifest says: send it with `edvit deploy`")
        held.enter_context(self._folder.receiving())
        await incoming.store(self._folder.incoming, text, manifest)
        bundle = await to_thread.run_sync(read_bundle, self._folder.incoming)
        progress.say(f"verified: bundle {digest[:12]}, {size / 1e6:,.1f} MB")
        if line := changes(manifest, old.bundle.manifest):
            progress.say(line)
        return bundle

    def _roll_out(self, bundle: Bundle, progress: Progress, until: float, held: ExitStack) -> None:
        failure: EdvitError | None = None
        with held:
            old = self.switch.current
            try:
                roll_out(
                    self.switch,
                    lambda away: self._serve(bundle, old, away),
                    bundle.digest,
                    lease=self._lease,
                    folder=self._folder,
                    until=until,
                    closing=self._closing,
                    say=progress.say,
                )
            except EdvitError as error:
                log.warning("bundle %s was given up: %s", bundle.digest[:12], error)
                failure = error
            except Exception:
                log.exception("a deploy failed")
                failure = ServiceError("internal error; see the gateway's log")
        if failure is not None:
            progress.failed(failure)
            return
        log.info("bundle %s is served now", bundle.digest[:12])
        progress.say("done: devices drop the old bundle")
        progress.done()

    def close(self) -> None:
        """Give up the deploy that is under way, unless it has switched; then end what is served."""
        with self._lock:
            self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.switch.current.close()

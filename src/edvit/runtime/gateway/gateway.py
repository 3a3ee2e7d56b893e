"""The gateway: fans one query out to every device, gathers features until a deadline, and fuses them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from edvit.bundle import Bundle
from edvit.errors import (
    BundleError,
    ConfigError,
    DeadlineError,
    EdvitError,
    ModelError,
    ServiceError,
    TooLargeError,
    UnavailableError,
)
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.submodel import check_images
from edvit.runtime.gateway.deadline import Deadline
from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.gather import Expected, Gathered, gather
from edvit.runtime.gateway.hedging import CopiesAsked, Hedging
from edvit.runtime.gateway.lease import Lease
from edvit.runtime.gateway.mending import MEND_AFTER_S
from edvit.runtime.gateway.model_files import serve_model_files
from edvit.runtime.gateway.observer import Observed, Observer
from edvit.runtime.gateway.reconcile import Reconciler
from edvit.runtime.gateway.silence import Silence
from edvit.runtime.prediction import Prediction, Timings, UInt8
from edvit.runtime.source import what
from edvit.runtime.wire.image_encoding import ImageEncoding, check_encoding
from edvit.runtime.wire.messages import MAX_BATCH
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES
from edvit.runtime.wire.transport import Transport

__all__ = ["DeviceStatus", "Gateway", "Prediction", "Timings"]

log = logging.getLogger(__name__)

RESERVE = 0.1
RESERVE_MOST_S = 0.05
"""Share of the deadline that is not waited for features, and the most of it in seconds."""
WATCH_S = 0.05
"""Pause between looks at which devices have fallen silent, seconds."""


class Gateway:
    """Predicts with those devices of a bundle's plan that answer. Thread-safe.

    It serves the bundle's models to them and loads each one whenever it appears, in the background.

    Args:
        bundle: a verified bundle.
        transport: how to reach the devices. The caller closes it, after the gateway.
        deadline_s: how long a prediction may take, seconds; None to learn it from what predictions take.
        image_encoding: of images on their way to the devices; `jpeg` changes pixels, and so scores, a little.
        strict: refuse to answer without every feature.
        mend_after_s: seconds after which the sub-models of a device that is gone are placed on others.
        replicas: 2 keeps a second copy of every sub-model on another device, where memory and energy allow, and asks
            it where the first one is late or has ended.
        lease: which gateway is in charge of the fleet, where another one of this process shares it. The caller closes
            it, after the gateway. None for a lease of its own.
        beside: digests of other bundles whose sub-models devices keep, while a new bundle is deployed.
        away: names of devices whose sub-models are placed on others at once.
        unknown_below: an image whose most probable class is less probable than this is taken for none of the classes.
        observers: are told of every prediction.

    Raises:
        BundleError: the fusion model is unusable.
        ConfigError: the deadline is not positive, `replicas` is not 1 or 2, or Pillow here cannot write that encoding.
    """

    def __init__(
        self,
        bundle: Bundle,
        transport: Transport,
        *,
        deadline_s: float | None = None,
        image_encoding: ImageEncoding = "raw",
        strict: bool = False,
        mend_after_s: float = MEND_AFTER_S,
        replicas: int = 1,
        lease: Lease | None = None,
        beside: tuple[str, ...] = (),
        away: Collection[str] = (),
        unknown_below: float = 0.0,
        observers: Collection[Observer] = (),
    ) -> None:
        if deadline_s is not None and not 0 < deadline_s < float("inf"):
            raise ConfigError(f"the deadline must be a positive number of seconds, not {deadline_s:g}")
        if replicas not in (1, 2):
            raise ConfigError(f"the replicas of a sub-model must be 1 or 2, not {replicas}")
        check_encoding(image_encoding)
        manifest = bundle.manifest
        self._bundle = bundle
        self._transport = transport
        self._deadline = Deadline(deadline_s)
        self._strict = strict
        self._unknown_below = unknown_below
        self._observers = tuple(observers)
        self._encoding = image_encoding
        self._what = what(manifest.preprocessing)
        try:
            self._fusion = FusionEngine(bundle.model_path(manifest.fusion.model), manifest)
        except ModelError as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        self._blobs = serve_model_files(bundle, transport, lambda: self._bundle.path)
        self._own_lease: Lease | None = None
        if lease is None:
            lease = self._own_lease = Lease(manifest.plan.fleet.name, bundle.digest, transport)
        self._silence = Silence()
        self._replicas = replicas
        self._hedging = Hedging() if replicas > 1 else None
        self._reconciler = Reconciler(
            bundle,
            transport,
            image_encoding,
            lease=lease,
            deadline=self._deadline,
            mend_after_s=mend_after_s,
            beside=beside,
            away=away,
            replicas=replicas,
            on_doubt=self._silence.release if replicas > 1 else lambda name: None,
        )
        self._closing = threading.Event()
        self._watching: threading.Thread | None = None
        if deadline_s is None:  # one that is given is waited for, whatever a device usually takes
            self._watching = threading.Thread(target=self._watch, name="silence", daemon=True)
            self._watching.start()

    @property
    def bundle(self) -> Bundle:
        """What it serves."""
        return self._bundle

    def moved_to(self, folder: Path) -> None:
        """The bundle's folder has another path now."""
        self._bundle = replace(self._bundle, path=folder)

    def keep_beside(self, bundles: tuple[str, ...]) -> None:
        """From now on devices keep sub-models of the bundles with these digests, and drop those of all others."""
        self._reconciler.keep_beside(bundles)

    def missing(self) -> tuple[int, ...]:
        """The sub-models that no device can be asked for now."""
        routes = self._reconciler.routes()
        return tuple(submodel.id for submodel in self._bundle.manifest.submodels if submodel.id not in routes)

    def lacking(self) -> dict[str, tuple[int, ...]]:
        """By device: the sub-models that it shall hold now and has not answered a first inference of."""
        return self._reconciler.lacking()

    def dismiss(self, names: Collection[str]) -> None:
        """Tell devices of the fleet once to drop everything: no bundle names them any more."""
        self._reconciler.dismiss(names)

    @property
    def longest_s(self) -> float:
        """No prediction may take longer, seconds."""
        return self._deadline.longest_s

    def check_lease(self) -> None:
        """Raises FleetTakenError where another gateway is in charge of the fleet, with another bundle."""
        self._reconciler.lease.check()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every sub-model of the plan has answered a first inference.

        Raises:
            UnavailableError: after `timeout_s` seconds some are missing; the message names them and says why.
        """
        if not self._reconciler.wait_ready(timeout_s):
            missing = [device for device in self.devices() if set(device.planned) - set(device.submodels)]
            raise UnavailableError(f"not ready after {timeout_s:g} s: {'; '.join(map(_lack, missing))}")

    def is_ready(self) -> bool:
        """Whether every sub-model of the plan is ready."""
        return self._reconciler.wait_ready(0)

    def devices(self) -> tuple[DeviceStatus, ...]:
        """Every device of the fleet, and those that are alive without being in it."""
        return self._reconciler.status()

    @property
    def replicas(self) -> int:
        """Devices on which each sub-model is kept, where there is room."""
        return self._replicas

    @property
    def copies_asked(self) -> CopiesAsked:
        """How many times second copies were asked."""
        return CopiesAsked() if self._hedging is None else self._hedging.asked

    def predict(self, images: UInt8, *, since: float | None = None) -> Prediction:
        """uint8 `[batch, channels, height, width]` -> the fused answer.

        A sub-model that does not answer before the deadline is replaced by its stand-in, and the answer degraded;
        one whose device dies or hangs is not waited for. With `replicas` 2 a second copy is asked before that.

        Args:
            images: the batch.
            since: `time.perf_counter()` at which the time began that the deadline limits; None for now.

        Raises:
            ImageError: the images have another shape or dtype.
            TooLargeError: the batch is larger than one message may be.
            FleetTakenError: another gateway is in charge of the fleet, with another bundle.
            DeadlineError: devices are there, but no sub-model answered before the deadline; or, where the gateway is
                strict, one did not.
            UnavailableError: no sub-model answered, for another reason; or, where the gateway is strict, one did not.
        """
        observed = Observed()
        try:
            observed.prediction = self._predict(images, since, observed)
            return observed.prediction
        except Exception as error:
            observed.code = error.code if isinstance(error, EdvitError) else EdvitError.code
            raise
        finally:
            for observer in self._observers:
                observer.observe(observed)

    def _predict(self, images: UInt8, since: float | None, observed: Observed) -> Prediction:
        """As `predict`; writes into `observed` how far it has come."""
        check_images(images, self._bundle.manifest.preprocessing.shape)
        most = min(MAX_BATCH, MAX_PAYLOAD_BYTES // images[0].nbytes)
        if len(images) > most:
            raise TooLargeError(f"a batch of {len(images):,} {self._what}s is too large: send at most {most:,} at once")
        self.check_lease()
        start = time.perf_counter()
        deadline_s = self._deadline.of(len(images))
        waited_s = observed.waited_s = 0.0 if since is None else start - since
        # What is kept back is for the fusion and the way of the answer.
        left_s = deadline_s - waited_s - min(RESERVE * deadline_s, RESERVE_MOST_S)
        if left_s <= 0:
            raise DeadlineError(
                f"the request waited for {waited_s:.2f} s, longer than its deadline of {deadline_s:g} s"
            )
        expected = self._reconciler.routes()
        gathered = observed.gathered = self._gather(images, expected, left_s)
        gathered_at = time.perf_counter()
        hangs = self._reconciler.learn(expected, gathered, fair=left_s >= deadline_s / 2)
        if expected and not hangs:
            self._deadline.took(len(images), waited_s + gathered_at - start)
        elif gathered.late:
            self._deadline.cut(len(images))
        missing = tuple(
            submodel.id for submodel in self._bundle.manifest.submodels if submodel.id not in gathered.features
        )
        if not gathered.features:
            raise self._no_answer(late=gathered.late, deadline_s=deadline_s)
        if missing and self._strict:
            raise self._incomplete(missing, late=gathered.late, deadline_s=deadline_s)
        logits = self._fusion.run(gathered.features, len(images))
        end = time.perf_counter()
        return Prediction(
            logits=logits,
            classes=self._bundle.manifest.data.classes,
            missing=missing,
            missing_classes=self._bundle.manifest.classes_of(missing),
            unknown_below=self._unknown_below,
            timings=Timings(
                total_s=end - start,
                gather_s=gathered_at - start,
                slowest_run_s=max(gathered.runs_s.values()),
                fuse_s=end - gathered_at,
            ),
        )

    def _gather(self, images: UInt8, expected: Mapping[int, Expected], left_s: float) -> Gathered:
        if not expected:
            return Gathered()
        return gather(
            self._transport.ask_each,
            self._bundle.manifest.plan.fleet.name,
            self._bundle.digest,
            images,
            expected,
            encoding=self._encoding,
            deadline_s=left_s,
            silence=self._silence,
            hedging=self._hedging,
        )

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            if silent := self._silence.give_up():
                self._reconciler.fell_silent(silent)

    def _no_answer(self, *, late: bool, deadline_s: float) -> ServiceError:
        """The error to raise when not one feature came."""
        planned = [device for device in self.devices() if device.planned]
        alive = sum(device.alive for device in planned)
        online = f"{alive} of {len(planned)} are online"
        if late:
            return DeadlineError(
                f"no device answered within {deadline_s:.3g} s ({online}); "
                f"ask for fewer {self._what}s at once, or serve with a longer --deadline-s"
            )
        if not alive:
            return UnavailableError(
                "no device answered; start `edvit device` on the devices of the plan, and see the gateway's log"
            )
        return UnavailableError(f"no device answered ({online}); GET /fleet says why")

    def _incomplete(self, missing: tuple[int, ...], *, late: bool, deadline_s: float) -> ServiceError:
        """The error to raise in place of a degraded answer."""
        names = f"{'sub-model' if len(missing) == 1 else 'sub-models'} {', '.join(map(str, missing))}"
        if late:
            return DeadlineError(f"{names} did not answer within {deadline_s:.3g} s, and the gateway is strict")
        return UnavailableError(f"{names} cannot be asked now, and the gateway is strict; GET /fleet says why")

    def close(self) -> None:
        """Stop serving and loading. Devices keep what they hold, for the next gateway."""
        self._closing.set()
        if self._watching is not None:
            self._watching.join()
        self._reconciler.close()
        if self._own_lease is not None:
            self._own_lease.close()
        self._blobs.close()


def _lack(device: DeviceStatus) -> str:
    submodels = ", ".join(map(str, device.planned))
    reason = device.problem or ("still loading" if device.alive else "not online; start `edvit device` on it")
    return f"{device.name} (sub-model {submodels}): {reason}"

"""The gateway: fans one query out to every device, gathers features until a deadline, and fuses them."""

from __future__ import annotations

import logging
import time

from edvit.bundle import Bundle
from edvit.errors import (
    BundleError,
    ConfigError,
    DeadlineError,
    ModelError,
    ServiceError,
    TooLargeError,
    UnavailableError,
)
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.submodel import check_images
from edvit.runtime.gateway.gather import gather
from edvit.runtime.gateway.model_files import serve_model_files
from edvit.runtime.gateway.reconcile import DeviceStatus, Reconciler
from edvit.runtime.prediction import Prediction, Timings, UInt8
from edvit.runtime.source import what
from edvit.runtime.wire.image_encoding import ImageEncoding, check_encoding
from edvit.runtime.wire.messages import MAX_BATCH
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES
from edvit.runtime.wire.transport import Transport

__all__ = ["DeviceStatus", "Gateway", "Prediction", "Timings"]

log = logging.getLogger(__name__)


class Gateway:
    """Predicts with those devices of a bundle's plan that are online. Thread-safe.

    It serves the bundle's models to them and loads each one whenever it appears, in the background.

    Args:
        bundle: a verified bundle.
        transport: how to reach the devices. The caller closes it, after the gateway.
        deadline_s: how long a prediction waits for features, seconds.
        image_encoding: of images on their way to the devices; `jpeg` changes pixels, and so scores, a little.

    Raises:
        BundleError: the fusion model is unusable.
        ConfigError: the deadline is not positive, or Pillow here cannot write that encoding.
    """

    def __init__(
        self, bundle: Bundle, transport: Transport, *, deadline_s: float = 2.0, image_encoding: ImageEncoding = "raw"
    ) -> None:
        if not 0 < deadline_s < float("inf"):
            raise ConfigError(f"the deadline must be a positive number of seconds, not {deadline_s:g}")
        check_encoding(image_encoding)
        manifest = bundle.manifest
        self._bundle = bundle
        self._transport = transport
        self._deadline_s = deadline_s
        self._encoding = image_encoding
        self._what = what(manifest.preprocessing)
        try:
            self._fusion = FusionEngine(bundle.model_path(manifest.fusion.model), manifest)
        except ModelError as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        self._blobs = serve_model_files(bundle, transport)
        self._reconciler = Reconciler(bundle, transport, image_encoding)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every sub-model of the plan has answered a first inference.

        Raises:
            UnavailableError: after `timeout_s` seconds some are missing; the message names them and says why.
        """
        if not self._reconciler.wait_ready(timeout_s):
            missing = [device for device in self.devices() if len(device.submodels) < len(device.planned)]
            raise UnavailableError(f"not ready after {timeout_s:g} s: {'; '.join(map(_lack, missing))}")

    def is_ready(self) -> bool:
        """Whether every sub-model of the plan is ready."""
        return self._reconciler.wait_ready(0)

    def devices(self) -> tuple[DeviceStatus, ...]:
        """Every device of the fleet, and those that are alive without being in it."""
        return self._reconciler.status()

    def predict(self, images: UInt8) -> Prediction:
        """uint8 `[batch, channels, height, width]` -> the fused answer.

        A sub-model that does not answer before the deadline is replaced by its stand-in, and the answer degraded;
        one whose device dies is not waited for.

        Raises:
            ImageError: the images have another shape or dtype.
            TooLargeError: the batch is larger than one message may be.
            DeadlineError: devices are there, but no sub-model answered before the deadline.
            UnavailableError: no sub-model answered, for another reason.
        """
        check_images(images, self._bundle.manifest.preprocessing.shape)
        most = min(MAX_BATCH, MAX_PAYLOAD_BYTES // images[0].nbytes)
        if len(images) > most:
            raise TooLargeError(f"a batch of {len(images):,} {self._what}s is too large: send at most {most:,} at once")
        start = time.perf_counter()
        expected = self._reconciler.expected
        gathered = gather(
            self._transport.ask_each,
            self._bundle.manifest.plan.fleet.name,
            self._bundle.digest,
            images,
            expected,
            encoding=self._encoding,
            deadline_s=self._deadline_s,
        )
        gathered_at = time.perf_counter()
        missing = tuple(sorted(set(expected) - set(gathered.features)))
        if any(isinstance(problem, UnavailableError) for problem in gathered.problems):
            self._reconciler.look_again(set(missing))
        if not gathered.features:
            raise self._no_answer(waited_s=gathered_at - start)
        logits = self._fusion.run(gathered.features, len(images))
        end = time.perf_counter()
        return Prediction(
            logits=logits,
            classes=self._bundle.manifest.data.classes,
            missing=missing,
            timings=Timings(
                total_s=end - start,
                gather_s=gathered_at - start,
                slowest_run_s=max(gathered.runs_s.values()),
                fuse_s=end - gathered_at,
            ),
        )

    def _no_answer(self, waited_s: float) -> ServiceError:
        """The error to raise when not one feature came in `waited_s` seconds."""
        planned = [device for device in self.devices() if device.planned]
        alive = sum(device.alive for device in planned)
        online = f"{alive} of {len(planned)} are online"
        if not alive:
            return UnavailableError(
                "no device answered; start `edvit device` on the devices of the plan, and see the gateway's log"
            )
        if waited_s < self._deadline_s:
            return UnavailableError(f"no device answered ({online}); GET /fleet says why")
        return DeadlineError(
            f"no device answered within {self._deadline_s:g} s ({online}); "
            f"ask for fewer {self._what}s at once, or serve with a longer --deadline-s"
        )

    def close(self) -> None:
        """Stop serving and loading. Devices keep what they hold, for the next gateway."""
        self._reconciler.close()
        self._blobs.close()


def _lack(device: DeviceStatus) -> str:
    submodels = ", ".join(map(str, device.planned))
    reason = device.problem or ("still loading" if device.alive else "not online; start `edvit device` on it")
    return f"{device.name} (sub-model {submodels}): {reason}"

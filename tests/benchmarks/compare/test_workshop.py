import numpy as np
import pytest
import torch
from benchmarks.compare.exchange import FanOut, Work
from benchmarks.compare.workshop import Workshop, encoded_image

from compare_settings import SETTINGS
from edvit.builder.jobs.progress import Reporter

FLAT = np.full((4, 3, 32, 32), 7, np.uint8)
EXCHANGE = FanOut(FLAT[0].nbytes, (Work(0.1),), (8,))


@pytest.mark.parametrize("encoding", ["webp", "jpeg"])
def test_an_encoded_image_is_the_mean_of_those_it_is_measured_on(encoding):
    random = np.random.default_rng(0).integers(0, 256, FLAT.shape, np.uint8)
    flat, both = encoded_image(FLAT, encoding), encoded_image(np.concatenate([FLAT, random]), encoding)
    noise = encoded_image(random, encoding)
    assert flat.bytes < FLAT[0].nbytes / 3
    assert both.bytes == pytest.approx((flat.bytes + noise.bytes) / 2, abs=1)
    assert min(flat.encode_s, flat.decode_s) > 0


def test_raw_images_change_nothing(tmp_path):
    images = torch.from_numpy(FLAT)
    for encoding, shrinks in (("raw", False), ("webp", True)):
        workshop = Workshop(SETTINGS.model_copy(update=dict(image_encoding=encoding)), tmp_path, Reporter(quiet=True))
        sent = workshop.sent(EXCHANGE, images)
        assert (sent == EXCHANGE) is not shrinks
        assert (sent.wire_bytes < EXCHANGE.wire_bytes) is shrinks
        assert (sent.work[0].seconds > 0.1) is shrinks


def test_every_build_trains_on_the_device_that_was_asked_for(tmp_path):
    workshop = Workshop(SETTINGS.model_copy(update=dict(device="cuda")), tmp_path, Reporter(quiet=True))
    for changes in ({}, workshop.convnet("vgg5"), {"prune": "channels"}):
        assert workshop.config(devices=2, seed=0, **changes).device == "cuda"

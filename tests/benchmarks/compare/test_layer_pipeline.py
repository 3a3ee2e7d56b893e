from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from benchmarks.compare.layer_pipeline import Stage, balance, block_seconds, build
from benchmarks.compare.replay import replay
from hypothesis import given
from hypothesis import strategies as st

import vit_variants
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import ConfigError, ModelError

torch.set_num_threads(1)
SECONDS = st.lists(st.integers(0, 50), min_size=1, max_size=9)


def partitions(blocks, stages):
    """Every way to cut, none empty."""
    for cuts in combinations(range(1, blocks), stages - 1):
        yield tuple(pairwise((0, *cuts, blocks)))


def slowest(seconds, ranges):
    return max(sum(seconds[start:stop]) for start, stop in ranges)


@given(SECONDS, st.data())
def test_no_partition_is_better(seconds, data):
    stages = data.draw(st.integers(1, len(seconds)))
    found = balance(seconds, stages)
    assert slowest(seconds, found) == min(slowest(seconds, other) for other in partitions(len(seconds), stages))


@given(SECONDS, st.data())
def test_every_block_is_in_one_stage(seconds, data):
    stages = data.draw(st.integers(1, len(seconds)))
    found = balance(seconds, stages)
    assert len(found) == stages
    assert [block for start, stop in found for block in range(start, stop)] == list(range(len(seconds)))
    assert all(start < stop for start, stop in found)


@pytest.mark.parametrize("stages", [0, 4, -1])
def test_more_stages_than_blocks_are_refused(stages):
    with pytest.raises(ConfigError, match=f"3 blocks can be cut into 1 to 3 stages, not {stages}"):
        balance([1.0, 1.0, 1.0], stages)


def extractor_of(variant):
    return FeatureExtractor(vit_variants.make(variant), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()


def pixels(count=3, channels=3):
    size = (count, channels, 8, 8)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", vit_variants.VARIANTS)
def test_stages_one_after_the_other_are_the_model(variant):
    extractor = extractor_of(variant)
    with torch.inference_mode():
        expected = extractor.model.head(extractor(pixels()))
        for ranges in (((0, 3),), ((0, 1), (1, 3)), ((0, 1), (1, 2), (2, 3))):
            value = pixels()
            for start, stop in ranges:
                value = Stage(extractor, start, stop)(value)
            assert torch.allclose(value, expected, atol=1e-5)


def test_every_block_is_timed():
    found = block_seconds(extractor_of("plain"), pixels(1), rounds=3)
    assert len(found) == 3
    assert min(found) > 0


def test_a_model_without_a_head_is_refused(tmp_path):
    model = backbone.create("vit_digits_patch4_8", channels=1, classes=0)
    with pytest.raises(ModelError, match="without a classifier head"):
        build(FeatureExtractor(model, (0.5,), (0.5,)), pixels(channels=1), 2, tmp_path)


@pytest.mark.slow
def test_a_pipeline_of_processes_answers_as_the_model_does(tmp_path):
    torch.manual_seed(0)
    model = backbone.create("vit_digits_patch4_8", channels=1, classes=10)
    extractor = FeatureExtractor(model, (0.5,), (0.5,))
    images = pixels(channels=1)
    made = build(extractor, images, 4, tmp_path / "stages")
    assert len(made.ranges) == made.exchange.devices == 4
    stream = 5 * 96 * 4
    assert made.exchange.input_bytes == 64
    assert made.exchange.output_bytes == (stream, stream, stream, 40)
    assert made.exchange.wire_bytes == 64 + 3 * stream + 40
    assert all(work.seconds > 0 and work.model.is_file() for work in made.exchange.work)
    found = replay(made.exchange, compute="real", image=images[0].numpy().tobytes(), images=5)
    with torch.inference_mode():
        expected = model.head(extractor(images[:1])).numpy()[0]
    assert np.abs(np.frombuffer(found.answer, "<f4") - expected).max() <= 1e-4
    assert found.wire_bytes == made.exchange.wire_bytes

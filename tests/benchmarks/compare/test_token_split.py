import numpy as np
import pytest
import torch
from benchmarks.compare.replay import replay
from benchmarks.compare.token_split import TokenSplit, count_tokens, even_shares, measure
from hypothesis import given
from hypothesis import strategies as st

import vit_variants
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import ConfigError, ModelError

torch.set_num_threads(1)


def pixels(count=3, channels=3, size=8):
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def extractor_of(variant):
    return FeatureExtractor(vit_variants.make(variant), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()


def digits():
    torch.manual_seed(0)
    model = backbone.create("vit_digits_patch4_8", channels=1, classes=10)
    return FeatureExtractor(model, (0.5,), (0.5,)).eval()


def scores(extractor, images):
    return extractor.model.head(extractor(images))


@given(st.integers(1, 300), st.data())
def test_shares_are_all_tokens_and_nearly_equal(tokens, data):
    shares = even_shares(tokens, data.draw(st.integers(1, tokens)))
    assert sum(shares) == tokens
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
def test_the_shares_of_one_to_five_devices_are_the_model(devices):
    extractor = digits()
    with torch.inference_mode():
        found = TokenSplit(extractor, even_shares(5, devices))(pixels(channels=1))
        assert (found - scores(extractor, pixels(channels=1))).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", vit_variants.VARIANTS)
def test_uneven_shares_of_every_kind_of_model_are_the_model(variant):
    extractor = extractor_of(variant)
    tokens = count_tokens(extractor)
    with torch.inference_mode():
        expected = scores(extractor, pixels())
        for shares in ((tokens,), (1, tokens - 1), (tokens - 2, 1, 1)):
            found = TokenSplit(extractor, shares)(pixels())
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 5])
def test_a_deit_of_many_tokens(devices):
    torch.manual_seed(0)
    model = backbone.create("deit_tiny_patch16_224", image_size=64, classes=10)
    extractor = FeatureExtractor(model, (0.5,) * 3, (0.25,) * 3).eval()
    images = pixels(2, size=64)
    with torch.inference_mode():
        found = TokenSplit(extractor, even_shares(17, devices))(images)
        assert (found - scores(extractor, images)).abs().max() <= 1e-5


@pytest.mark.parametrize("shares", [(), (5, 0), (2, 2), (6, -1)])
def test_shares_that_are_not_all_tokens_are_refused(shares):
    with pytest.raises(ConfigError, match="5 tokens cannot be shared out as"):
        TokenSplit(digits(), shares)


def test_more_devices_than_tokens_are_refused():
    with pytest.raises(ConfigError, match="5 tokens can be shared out among 1 to 5 devices, not 6"):
        even_shares(5, 6)


def test_a_model_without_a_head_is_refused():
    model = backbone.create("vit_digits_patch4_8", channels=1, classes=0)
    with pytest.raises(ModelError, match="without a classifier head"):
        TokenSplit(FeatureExtractor(model, (0.5,), (0.5,)), (2, 3))


@pytest.mark.slow
def test_the_exchange_of_a_split(tmp_path):
    exchange = measure(TokenSplit(digits(), (2, 2, 1)), pixels(channels=1), tmp_path / "parts")
    token = 96 * 4
    assert exchange.input_bytes == 64
    assert exchange.part_bytes == (2 * token, 2 * token, token)
    assert exchange.result_bytes == (token, 0, 0)  # the class token
    # Five exchanges between six blocks: every token goes to two other devices.
    assert exchange.wire_bytes == 3 * 64 + 5 * 2 * 5 * token + token
    assert [len(round_) for round_ in exchange.work] == [3] * 6
    assert all(work.seconds > 0 and work.model is None for round_ in exchange.work for work in round_)
    # Equal parts are exported once: two lengths of the first block and two of the others, and the head.
    assert len(list((tmp_path / "parts").iterdir())) == 5


@pytest.mark.slow
def test_every_token_goes_to_the_gateway_where_the_head_reads_the_mean(tmp_path):
    extractor = extractor_of("avg_pool")
    exchange = measure(TokenSplit(extractor, (3, 1)), pixels(), tmp_path, every_block=True)
    assert exchange.result_bytes == (3 * 24 * 4, 24 * 4)
    found = replay(exchange, compute="real", image=pixels()[1].numpy().tobytes(), images=3)
    with torch.inference_mode():
        expected = scores(extractor, pixels()[1:2]).numpy()[0]
    assert np.abs(np.frombuffer(found.answer, "<f4") - expected).max() <= 1e-4
    assert found.wire_bytes == exchange.wire_bytes

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import ModelError
from edvit.shape.conv import KEEP_STEPS, NAMES, convnet, is_convnet
from edvit.shape.image import ImageSize


@pytest.mark.parametrize("name", NAMES)
def test_sets_are_written_by_the_convolutions_and_read_after_that(name):
    network = convnet(name, classes=10)
    written = set()
    for conv in network.convs:
        assert conv.reads is None or conv.reads in written
        written.add(conv.writes)
    assert written == set(range(len(network.widths.filters)))
    assert network.feature == network.convs[-1].writes
    assert network.spiking == name.startswith("spiking_")


@pytest.mark.parametrize("name", NAMES)
@given(steps=st.fractions(min_value=0, max_value=Fraction(KEEP_STEPS * 1000 - 1, 1000)))
def test_narrowed_sets_are_multiples_of_eight_and_no_wider(name, steps):
    network = convnet(name, classes=10)
    narrow = network.narrowed(steps)
    for new, old in zip(narrow.widths.filters, network.widths.filters, strict=True):
        assert 8 <= new <= old
        assert new % 8 == 0
    assert narrow.model_copy(update={"widths": network.widths}) == network


def test_nothing_pruned_is_the_same_network():
    network = convnet("vgg9", classes=10)
    assert network.narrowed(0) == network


def test_all_pruned_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.15"):
        convnet("vgg9", classes=10).narrowed(KEEP_STEPS)


def test_names_are_ours_alone():
    assert is_convnet("vgg9")
    assert not is_convnet("deit_tiny_patch16_224")
    assert not is_convnet(None)


def test_an_unknown_network_and_a_small_image_are_refused_in_one_line():
    with pytest.raises(ModelError, match="did you mean vgg9"):
        convnet("vgg99", classes=10)
    with pytest.raises(ModelError, match="image size 8 is too small for vgg9; give at least 16 for each side"):
        convnet("vgg9", image_size=8, classes=10)
    with pytest.raises(ModelError, match="image size 8x32 is too small"):
        convnet("vgg9", image_size=ImageSize(8, 32), classes=10)


def test_a_convnet_has_no_rotated_form():
    with pytest.raises(ModelError, match="no ViT"):
        convnet("vgg9", classes=10).rotated_form()

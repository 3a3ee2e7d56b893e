"""Image processors of transformers, as it runs them and as we read them from the file that it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edvit.builder.models.processor import Processor
from edvit.inputs.preprocess import Preprocessing, image_to_array

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seen(model_type="vit", **written):
    return Processor.model_validate(written).seen(model_type)


def picture(width=16, height=16):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ours(found, image, pixels):
    mean, std = found.mean * (3 // len(found.mean)), found.std * (3 // len(found.std))
    how = Preprocessing(image_size=pixels, channels=3, interpolation=found.interpolation, mean=mean, std=std)
    array = image_to_array(image, how).astype(np.float64) / 255
    return (array - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 1.0])
def test_numbers_are_those_of_transformers(normalize, rescale, factor, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD, do_normalize=normalize, do_rescale=rescale,
        rescale_factor=factor,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    found = seen(**json.loads((tmp_path / "preprocessor_config.json").read_text()))
    wanted = theirs([picture()], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(found, picture(), 16), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_an_offset_is_that_of_transformers(normalize):
    transformers = pytest.importorskip("transformers")
    how = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": normalize, "do_center_crop": False,
           "image_mean": MEAN, "image_std": STD, "size": {"height": 16, "width": 16}, "include_top": False}  # fmt: skip
    wanted = transformers.EfficientNetImageProcessor(**how)([picture()], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(seen(resample=2, **how), picture(), 16), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resample", [2, 3])
def test_a_resize_is_that_of_transformers_to_a_grey_level(resample):
    transformers = pytest.importorskip("transformers")
    how = {"resample": resample, "size": {"height": 16, "width": 16}, "do_normalize": False}
    wanted = transformers.ViTImageProcessor(**how)([picture(37, 37)], return_tensors="np")["pixel_values"][0]
    assert np.abs(ours(seen(**how), picture(37, 37), 16) - wanted).max() < 2.5 / 255


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("ViT", None), ("DeiT", None), ("Bit", None), ("CLIP", None), (None, "vit"), (None, "deit"), (None, "dinov2")],
)
def test_what_the_file_leaves_out_is_transformers_default(kind, model_type):
    transformers = pytest.importorskip("transformers")
    named = kind or {"vit": "ViT", "deit": "DeiT", "dinov2": "Bit"}[model_type]
    theirs = getattr(transformers, f"{named}ImageProcessor")()
    found = seen(model_type or "vit", **({"image_processor_type": f"{kind}ImageProcessorFast"} if kind else {}))
    assert found.mean == pytest.approx(theirs.image_mean)
    assert found.std == pytest.approx(theirs.image_std)
    assert found.interpolation == {2: "bilinear", 3: "bicubic"}[int(theirs.resample)]
    assert found.pixels == 224
    old = seen("vit", feature_extractor_type=f"{named}FeatureExtractor")
    assert old == found


@pytest.mark.parametrize(
    ("written", "otherwise", "pixels"),
    [
        ({"size": 64}, ("stretched to a square",), 64),
        ({"size": {"height": 64, "width": 64}}, ("stretched to a square",), 64),
        ({"size": {"height": 64, "width": 32}}, ("resized to {'height': 64, 'width': 32}",), None),
        ({"size": {"shortest_edge": 64}}, (), 64),
        ({"size": {"shortest_edge": 64}, "crop_size": 48}, (), 64),
        (
            {"size": {"shortest_edge": 64}, "crop_size": 48, "do_center_crop": True},
            ("cut to the middle 75% of each side",),
            48,
        ),
        (
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 96, "width": 96}, "do_center_crop": True},
            ("padded from 64 to 96",),
            96,
        ),
        ({"size": {"shortest_edge": 64}, "crop_size": 64, "do_center_crop": True}, (), 64),
        ({"size": {"longest_edge": 64}}, ("resized to {'longest_edge': 64}",), None),
        ({"do_resize": False}, (), None),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 8}, ("cut from their middle without a resize",), 8),
        ({"size": {"shortest_edge": 64}, "resample": 0}, ("resized by nearest",), 64),
        ({"size": {"shortest_edge": 64}, "resample": 1}, ("resized by lanczos",), 64),
        ({"size": {"shortest_edge": 64}, "resample": 5}, ("resized by hamming",), 64),
        ({"size": {"shortest_edge": 64}, "resample": 9}, ("resized by filter 9",), 64),
        ({"size": {"shortest_edge": 64}, "do_pad": True, "do_thumbnail": False}, ("changed by do_pad",), 64),
    ],
)
def test_what_is_done_otherwise_is_said(written, otherwise, pixels):
    found = seen(**written)
    assert (found.otherwise, found.pixels) == (otherwise, pixels)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"rescale_factor": 0}, "is 0 or no number"),
        ({"image_std": [0.5, 0.0, 0.5]}, "is 0 or no number"),
        ({"do_flip_channel_order": True}, "shows the model blue first"),
        ({"image_processor_type": "OtherImageProcessor", "do_rescale": False}, "says no image_mean"),
    ],
)
def test_what_cannot_be_followed_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        seen(**written)


def test_one_number_for_all_channels():
    assert (seen(image_mean=0.4, image_std=0.2).mean, seen(image_mean=0.4, image_std=0.2).std) == ((0.4,), (0.2,))

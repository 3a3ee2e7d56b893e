from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edvit.errors import BundleError, ConfigError, DataError, EdvitError, ImageError
from edvit.inputs.audio import Spectrogram
from edvit.inputs.preprocess import image_to_array
from edvit.runtime.http.answers import Predicted
from edvit.runtime.prediction import Answer, Prediction
from edvit.runtime.predictor import LocalPredictor
from edvit.shape.image import ImageSize
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("engine") / "bundle", submodels=3, classes=7)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def test_a_whole_bundle_in_one_process(bundle, images):
    predictor = LocalPredictor(bundle)
    prediction = predictor.predict(images)
    assert prediction.logits.shape == (5, 7)
    assert prediction.missing == ()
    assert not prediction.degraded
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (prediction.indices == prediction.probabilities.argmax(axis=1)).all()
    assert prediction.timings.total_s >= prediction.timings.slowest_run_s > 0


def test_absent_submodels_degrade(bundle, images):
    predictor = LocalPredictor(bundle)
    whole = predictor.predict(images)
    degraded = predictor.predict(images, absent=[2, 0])
    assert degraded.missing == (0, 2)
    assert degraded.degraded
    assert not np.array_equal(degraded.logits, whole.logits)
    assert predictor.predict(images, absent=range(3)).missing == (0, 1, 2)


def test_threads_do_not_change_a_bit(bundle, images):
    one, two = LocalPredictor(bundle, threads=1), LocalPredictor(bundle, threads=2)
    assert np.array_equal(one.predict(images).logits, two.predict(images).logits)


def test_probabilities_of_huge_logits_are_finite(bundle, images):
    prediction = LocalPredictor(bundle).predict(images)
    prediction.logits[:] *= 1e4
    assert np.isfinite(prediction.probabilities).all()


def test_a_bundle_whose_fusion_does_not_fit_is_refused(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", submodels=2, classes=7)
    (bundle_path := tmp_path / "mixed").symlink_to(other.path)
    mixed = type(bundle)(path=bundle_path, manifest=bundle.manifest, digest=bundle.digest)
    with pytest.raises(BundleError):
        LocalPredictor(mixed)


def test_no_threads_is_refused(bundle):
    with pytest.raises(ConfigError, match="threads"):
        LocalPredictor(bundle, threads=0)


# --- a batch -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp32", "int8"])
def predictor(request, tmp_path_factory):
    bundle = write_tiny_bundle(tmp_path_factory.mktemp(request.param) / "bundle", int8=request.param == "int8")
    return LocalPredictor(bundle)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 70), seed=st.integers(0, 2**32 - 1))
def test_an_answer_does_not_depend_on_its_neighbours(predictor, count, seed):
    """Over the edges of chunks; images as bright as they happen to be, and so each with a scale of its own."""
    rng = np.random.default_rng(seed)
    images = (rng.integers(0, 256, (count, 3, 16, 16)) * rng.random((count, 1, 1, 1))).astype(np.uint8)
    batch = predictor.run(images)
    alone = np.concatenate([predictor.run(image[None]).logits for image in images])
    assert batch.logits == pytest.approx(alone, rel=1e-4, abs=1e-4)
    margin = np.diff(np.sort(alone, axis=1)[:, -2:], axis=1)[:, 0]
    assert ((batch.indices == alone.argmax(axis=1)) | (margin < 2e-4)).all()


# --- what it takes -----------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    """A file of another size than the model's."""
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(3).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_one_image_in_every_form_has_the_same_answer(bundle, picture):
    predictor, how = LocalPredictor(bundle), bundle.manifest.preprocessing
    with Image.open(picture) as image:
        array = image_to_array(image, how)
    with Image.open(picture) as opened:
        held = picture.read_bytes()
        forms = (picture, str(picture), held, bytearray(held), memoryview(held), opened, array)
        answers = [predictor.predict(one) for one in forms]
    assert all(answer == answers[0] for answer in answers)
    answer, whole = answers[0], predictor.run(array[None])
    assert isinstance(answer, Answer)
    assert answer.index == int(whole.indices[0])
    assert answer.label == bundle.manifest.data.classes[answer.index] == answer.top[0].label
    assert answer.probability == pytest.approx(float(whole.probabilities.max()))
    assert (answer.degraded, answer.missing) == (False, ())
    assert predictor.predict(picture, absent=[1]).missing == (1,)


def test_an_answer_has_the_names_of_the_http_answer():
    assert set(Answer.model_fields) == set(Predicted.model_fields) - {"timings"}


def test_a_batch_in_every_form_has_the_same_answers(bundle, images, picture):
    predictor = LocalPredictor(bundle)
    whole = predictor.predict(images)
    assert isinstance(whole, Prediction)
    assert predictor.predict(list(images)).logits.tobytes() == whole.logits.tobytes()
    assert whole.labels == tuple(answer.label for answer in whole.answers)
    mixed = predictor.predict([picture, images[0], memoryview(picture.read_bytes())])
    assert mixed.answers[0] == mixed.answers[2]
    assert mixed.labels[1] == whole.labels[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((16, 16, 3), np.uint8), r"transpose\(2, 0, 1\)"),
        (np.zeros((3, 16, 16)), r"float64 \[3, 16, 16\]: give one image as .*uint8 array \[3, 16, 16\]"),
        (np.zeros((2, 3, 16, 15), np.uint8), r"\[batch, 3, 16, 16\]"),
        (np.zeros((0, 3, 16, 16), np.uint8), "give"),
        (np.uint8(3), "give"),
        (np.array(3, np.uint8), "give"),
        ([], "the list is empty"),
        (3, "int is no image"),
        ([3], "int is no image"),
        (None, "NoneType is no image"),
        (b"", "empty"),
        (b"no image", "not an image file"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_line(bundle, wrong, said):
    with pytest.raises(ImageError, match=said) as refused:
        LocalPredictor(bundle).predict(wrong)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(bundle, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="cannot be read"):
        LocalPredictor(bundle).predict("a\0b.png")
    for path, kind in ((tmp_path / "gone.png", DataError), (tmp_path, DataError), (tmp_path / "notes.txt", ImageError)):
        with pytest.raises(kind, match=f"^{path}: "):
            LocalPredictor(bundle).predict(path)


def test_a_picture_cut_short_is_one_line(bundle, picture):
    cut = picture.read_bytes()[:-200]
    with Image.open(io.BytesIO(cut)) as opened, pytest.raises(EdvitError, match="cannot be decoded"):
        LocalPredictor(bundle).predict(opened)


def test_sounds(bundle, images):
    how = bundle.manifest.preprocessing.model_copy(update={"spectrogram": Spectrogram(sample_rate=8000, seconds=0.5)})
    manifest = bundle.manifest.model_copy(update={"preprocessing": how})
    predictor = LocalPredictor(type(bundle)(path=bundle.path, manifest=manifest, digest=bundle.digest))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.random.default_rng(0).integers(0, 256, 8000, dtype=np.uint8).tobytes())
    assert predictor.predict(file.getvalue()).label in manifest.data.classes
    for wrong, said in (
        (Image.new("RGB", (8, 8)), "the model takes sounds, not images: give one sound as its path or its bytes"),
        (3, "int is no sound"),
        (images[0, :, :3], "give one sound"),
        ([], "give at least one sound"),
    ):
        with pytest.raises(ImageError, match=said):
            predictor.predict(wrong)


def test_images_that_are_not_square(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle", size=ImageSize(24, 40))
    predictor = LocalPredictor(bundle)
    photo = Image.effect_noise((320, 200), 80).convert("RGB")
    array = image_to_array(photo, bundle.manifest.preprocessing)
    assert array.shape == (3, 24, 40)
    assert np.array_equal(predictor.predict([photo]).logits, predictor.predict(array[None]).logits)
    with pytest.raises(ImageError, match=r"give one image as .* a uint8 array \[3, 24, 40\]"):
        predictor.predict(np.zeros((3, 40, 24), np.uint8))

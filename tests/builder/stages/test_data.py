from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edvit.builder.stages import data as stage
from edvit.builder.stages.base import fine_tune_epochs
from edvit.builder.stages.source import open_source
from edvit.builder.stages.teacher import teach
from edvit.builder.train.augment import UNLABELLED
from edvit.errors import ConfigError, DataError, MissingExtraError, ModelError
from edvit.inputs.audio import Spectrogram
from named_sets import write_idx
from sounds import encoded, tone
from tiny_build import opened, runner_of, tiny_config, untrained

torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, images in (("train", 10), ("test", 1)):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def prepared(root, **settings):
    """The first three stages over an image folder, in a work folder that stays."""
    known = {"data": f"imagefolder:{root}", "channels": 1, "base_epochs": 0, "views": 1}
    config = tiny_config(**{**known, **settings})
    build = opened(config, root.parent / "work", start=untrained)
    views = stage.training_views(config, build.data)
    how = build.source.preprocessing
    taught = teach(build.runner, config, build.base, views, preprocessing=how, devices=[build.device])
    return build.data, build.base, taught.views[0]


@pytest.mark.parametrize(("images", "epochs"), [(54_000, 6), (9_000, 8), (2_160, 31), (64, 1000), (3, 1000)])
def test_a_pretrained_model_is_trained_for_six_epochs_and_for_a_thousand_steps(images, epochs):
    assert fine_tune_epochs(images, batch_size=64) == epochs
    assert epochs == 6 or (epochs - 1) * max(1, images // 64) < 1000 <= epochs * max(1, images // 64)


def test_again_is_the_same_stages(root):
    first, second = prepared(root), prepared(root)
    assert (first[0].train.folder, first[2]) == (second[0].train.folder, second[2])
    assert first[0].train.digest == second[0].train.digest


def replace_image(root):
    path = root / "train" / "a" / "3.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(path)


def move_image(root):
    (root / "train" / "a" / "3.png").rename(root / "train" / "b" / "3b.png")


def add_image(root):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(root / "train" / "a" / "new.png")


@pytest.mark.parametrize("change", [replace_image, move_image, add_image])
def test_changed_data_is_seen_even_under_a_base_that_needs_no_training(root, change):
    first = prepared(root)
    change(root)
    second = prepared(root)
    assert first[0].train.digest != second[0].train.digest
    assert first[1].artifact.digest == second[1].artifact.digest, "no training: the same weights"
    assert first[2].folder != second[2].folder


def test_another_validation_split_is_another_training_set_and_another_seed_is_not(root):
    first, second = prepared(root), prepared(root, validation=0.4)
    assert first[0].train.folder == second[0].train.folder, "decoded once"
    assert first[0].train.digest != second[0].train.digest
    assert first[2].folder != second[2].folder
    assert first[0].train.digest == prepared(root, seed=5)[0].train.digest


def test_a_file_that_is_written_again_and_a_copy_elsewhere_are_the_same_data(root, tmp_path):
    first = prepared(root)
    path = root / "train" / "a" / "3.png"
    path.write_bytes(path.read_bytes())
    assert prepared(root)[0].train.folder == first[0].train.folder
    elsewhere = shutil.move(root, tmp_path / "elsewhere")
    assert prepared(elsewhere)[0].train.folder == first[0].train.folder


def test_other_content_of_the_same_size_and_time_is_seen(root, tmp_path):
    first, second = (root / "train" / "a" / name for name in ("3.png", "4.png"))
    contents = [path.read_bytes() for path in (first, second)]
    size = max(map(len, contents))
    for path, content in zip((first, second), contents, strict=True):
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, ns=(0, 0))
    before = decoded(root, tmp_path)
    time.sleep(0.05)  # a file system counts changes in steps of some milliseconds
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, ns=(0, 0))
    assert decoded(root, tmp_path).train.folder != before.train.folder


def test_a_damaged_file_is_named_where_it_lies_now(root, tmp_path):
    damage(root, "train/a/1.png")
    before = decoded(root, tmp_path, bad_files="skip")
    elsewhere = shutil.move(root, tmp_path / "elsewhere")
    after = decoded(elsewhere, tmp_path, bad_files="skip")
    assert after.train.folder == before.train.folder
    assert after.notes == (f"1 file that cannot be read left out: {elsewhere}/train/a/1.png",)


def test_training_and_validation_share_no_image(root):
    data, *_ = prepared(root, validation=0.2)
    assert set(data.train.rows).isdisjoint(data.validation.rows)
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert np.bincount(data.validation.labels).tolist() == [2, 2]


def test_defaults_suit_the_data():
    digits = open_source(tiny_config(model=None))
    assert digits.model == "vit_digits_patch4_8"
    assert (digits.preprocessing.channels, digits.preprocessing.image_size) == (1, (8, 8))
    assert stage.augmentation(tiny_config()) == stage.GLYPHS
    assert stage.augmentation(tiny_config(data="cifar10")) == stage.NATURAL
    assert stage.augmentation(tiny_config(augment="none")).is_identity


def test_normalisation_follows_the_channels(root):
    grey = open_source(tiny_config(data=f"imagefolder:{root}", channels=1)).preprocessing
    colour = open_source(tiny_config(data=f"imagefolder:{root}")).preprocessing
    assert (len(grey.mean), len(colour.mean)) == (1, 3)
    assert grey.mean[0] == pytest.approx(sum(colour.mean) / 3)


def test_image_folders_need_a_model(root):
    with pytest.raises(DataError, match="needs a --model"):
        open_source(tiny_config(data=f"imagefolder:{root}", model=None))
    with pytest.raises(ModelError, match="did you mean vit_digits_patch4_8"):
        open_source(tiny_config(model="vit_digit_patch4_8"))


@pytest.fixture
def sounds(tmp_path):
    for split, clips in (("train", 10), ("test", 1)):
        for label, hertz in (("high", 2000), ("low", 200)):
            folder = tmp_path / "sounds" / split / label
            folder.mkdir(parents=True)
            for i in range(clips):
                (folder / f"{i}.wav").write_bytes(encoded(tone(hertz + i, 0.3)))
    return f"audiofolder:{tmp_path / 'sounds'}"


def test_sounds_become_spectrograms_of_their_own_length(sounds):
    how = open_source(tiny_config(data=sounds, channels=1)).preprocessing
    assert how.spectrogram == Spectrogram(seconds=0.3)
    asked = tiny_config(data=sounds, channels=1, seconds=0.5, sample_rate=8000, mels=32)
    assert open_source(asked).preprocessing.spectrogram == Spectrogram.at(8000, seconds=0.5, mels=32)
    assert stage.augmentation(tiny_config(data=sounds)) == stage.SPECTROGRAMS
    with pytest.raises(ConfigError, match="mels"):
        open_source(tiny_config(data=sounds, channels=1, mels=1))


def test_settings_of_sounds_are_refused_for_images(root):
    with pytest.raises(ConfigError, match="--sample-rate: is for sounds, and the data are images; leave it out"):
        open_source(tiny_config(data=f"imagefolder:{root}", sample_rate=8000))


def test_a_validation_split_that_the_authors_chose_is_kept(sounds, tmp_path):
    config = tiny_config(data=sounds, channels=1)
    source = open_source(config)
    chosen = np.array([0, 3, 10, 11])
    source = replace(source, train=replace(source.train, validation=chosen))
    data = stage.decode(runner_of(tmp_path / "work"), source, config.validation)
    assert data.validation.rows.tolist() == chosen.tolist()
    assert sorted([*data.train.rows, *chosen]) == list(range(20))


def test_a_build_from_a_named_set_draws_the_same_images_as_from_its_files(tmp_path):
    """The digest is from a reader of MNIST's files themselves, without a folder between."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 10)):
        write_idx(tmp_path, prefix, rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.permutation(count) % 10)
    config = tiny_config(data="mnist", data_root=tmp_path)
    data = stage.decode(runner_of(tmp_path / "work"), open_source(config), 0.2)
    found = hashlib.sha256(repr(data.classes).encode())
    for images in (data.train, data.validation):
        found.update(repr((images.rows.tolist(), images.labels.tolist())).encode())
        found.update(images.pixels().tobytes())
    assert found.hexdigest()[:16] == "6418217110023c52"


def damage(root, *names):
    for name in names:
        (root / name).write_bytes(b"no picture")


def decoded(root, tmp_path, work="work", **settings):
    config = tiny_config(data=f"imagefolder:{root}", channels=1, **settings)
    return stage.decode(runner_of(tmp_path / work), open_source(config), config.validation, config.bad_files)


def test_all_damaged_files_are_told_at_once_those_of_the_test_split_too(root, tmp_path):
    damage(root, "train/a/1.png", "train/b/2.png", "test/b/0.png")
    with pytest.raises(DataError) as caught:
        decoded(root, tmp_path)
    message = str(caught.value)
    assert message.startswith("3 files cannot be read: ")
    assert message.endswith(". Replace or remove them, or give --bad-files skip to leave them out")
    assert "\n" not in message
    for name in ("train/a/1.png: not an image file", "train/b/2.png: not", "test/b/0.png: not"):
        assert str(root / name) in message


def test_the_first_ten_damaged_files_are_named_and_the_rest_counted(root, tmp_path):
    damage(root, *(f"train/{label}/{i}.png" for label in ("a", "b") for i in range(8)))
    with pytest.raises(DataError, match=r"^16 files cannot be read: .*; and 6 more\. Replace") as caught:
        decoded(root, tmp_path)
    assert str(caught.value).count("not an image file") == 10


def test_one_damaged_file_is_told_with_what_to_do(root, tmp_path):
    damage(root, "train/a/1.png")
    with pytest.raises(DataError, match=r"train/a/1\.png: not an image file: .*; replace or remove the file$"):
        decoded(root, tmp_path)


def test_damaged_files_are_left_out_when_asked_and_the_rest_is_as_it_was(root, tmp_path):
    before = decoded(root, tmp_path, "before")
    rows, pixels = before.train.rows, before.train.pixels()
    spoilt = int(rows[3])
    damage(root, f"train/{'ab'[spoilt // 10]}/{spoilt % 10}.png")
    after = decoded(root, tmp_path, bad_files="skip")
    assert after.train.rows.tolist() == [row for row in rows if row != spoilt]
    assert np.array_equal(after.train.pixels(), pixels[rows != spoilt])
    assert after.validation.rows.tolist() == before.validation.rows.tolist()
    (note,) = after.notes
    assert note.startswith("1 file that cannot be read left out: ")
    assert before.notes == ()


def test_a_class_of_damaged_files_alone_is_refused(root, tmp_path):
    damage(root, *(f"train/b/{i}.png" for i in range(10)))
    with pytest.raises(DataError, match="class 'b' has no image left without the 10 files that cannot be read"):
        decoded(root, tmp_path, bad_files="skip")
    shutil.rmtree(root / "train" / "b")
    shutil.copytree(root / "train" / "a", root / "train" / "b")
    for i in range(10):
        Image.new("L", (8, 8), i).save(root / "train" / "b" / f"{i}.png")
    damage(root, "test/a/0.png", "test/b/0.png")
    with pytest.raises(DataError, match="no test image can be read"):
        decoded(root, tmp_path, bad_files="skip")


def test_a_class_without_images_is_told_before_any_is_decoded(root, tmp_path, monkeypatch):
    (root / "class_order.txt").write_text("a\nb\nghost\n")
    monkeypatch.setattr(stage.Decode, "run", lambda *_: pytest.fail("images were decoded"))
    with pytest.raises(DataError, match="class 'ghost' has no training images"):
        decoded(root, tmp_path)


def test_one_image_in_a_class_is_for_training_and_one_in_each_is_too_few(root, tmp_path):
    for i in range(1, 10):
        (root / "train" / "b" / f"{i}.png").unlink()
    data = decoded(root, tmp_path)
    assert (np.bincount(data.train.labels).tolist(), data.validation.labels.tolist()) == ([9, 1], [0])
    assert data.notes == ("no validation images of b",)
    for i in range(1, 10):
        (root / "train" / "a" / f"{i}.png").unlink()
    for copies in (0, 3):
        for i in range(copies):
            shutil.copyfile(root / "train" / "a" / "0.png", root / "train" / "a" / f"copy{i}.png")
        with pytest.raises(DataError, match="no class has two different training images, and none is left for valid"):
            decoded(root, tmp_path)


def test_400_to_2_is_split(root, tmp_path):
    for i in range(2, 10):
        (root / "train" / "b" / f"{i}.png").unlink()
    for i in range(10, 400):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(root / "train" / "a" / f"{i}.png")
    data = decoded(root, tmp_path)
    assert np.bincount(data.train.labels).tolist() == [360, 1]
    assert np.bincount(data.validation.labels).tolist() == [40, 1]


def test_copies_stay_on_one_side_of_the_cut_and_are_told(root, tmp_path):
    for label in ("a", "b"):
        for i in range(10):
            shutil.copyfile(root / "train" / label / f"{i}.png", root / "train" / label / f"{i}c.png")
    data = decoded(root, tmp_path)
    held_out = {pixels.tobytes() for pixels in data.validation.pixels()}
    assert not held_out & {pixels.tobytes() for pixels in data.train.pixels()}
    assert np.bincount(data.validation.labels).tolist() == [2, 2]
    assert data.notes == ("20 of 40 training images are different, and copies stay on one side of the cut",)
    assert data.warnings == ()


def test_a_leak_is_a_warning_and_a_test_split_of_training_images_is_refused(root, tmp_path):
    shutil.copyfile(root / "train" / "a" / "0.png", root / "test" / "a" / "1.png")
    data = decoded(root, tmp_path)
    (warning,) = data.warnings
    assert "1 of 3, such as test/a/1.png, which is train/a/0.png; the test accuracy means nothing for them" in warning
    shutil.copyfile(root / "train" / "b" / "0.png", root / "test" / "b" / "0.png")
    with pytest.raises(DataError, match="byte for byte: 2 of 3, such as"):
        decoded(root, tmp_path)


def test_split_by_keeps_groups_on_one_side_and_says_so(root, tmp_path):
    data = decoded(root, tmp_path, split_by=r"([0-4]|[5-9])\.png")
    held_out = {int(row) % 10 for row in data.validation.rows}
    assert not held_out & {int(row) % 10 for row in data.train.rows}
    assert len(data.validation) == 2
    assert data.notes == (
        "validation: 1 of 10 groups of --split-by; 1 group in both training and test data, so test accuracy may be too "
        "high",
    )


def test_split_by_that_leaves_nothing_to_hold_out_is_refused(root, tmp_path):
    with pytest.raises(DataError, match=r"--split-by: in the training data no class has files of two groups"):
        decoded(root, tmp_path, split_by="/([ab])/")


def test_split_by_beside_a_validation_split_is_refused(root, tmp_path):
    (root / "test").rename(root / "val")
    for label in ("a", "b"):
        (root / "test" / label).mkdir(parents=True)
        Image.new("L", (8, 8), ord(label)).save(root / "test" / label / "0.png")
    assert decoded(root, tmp_path).notes == ("validation: val/",)
    with pytest.raises(ConfigError, match="--split-by: the data set has a validation split of its own"):
        decoded(root, tmp_path, split_by=r"(\d)\.png")
    with pytest.raises(ConfigError, match="--validation: the data set has a validation split of its own"):
        open_source(tiny_config(data=f"imagefolder:{root}", channels=1, validation=0.2))


def test_what_the_test_split_skips_is_told_as_well(root, tmp_path):
    (root / "test" / "a" / "clip.mov").touch()
    assert decoded(root, tmp_path).notes == ("test: 1 of 2 files of a skipped: 1 .mov",)


def test_transparency_is_counted_and_composed_on_a_colour_when_asked(root, tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(root / "train" / "a" / "3.png")
    data = decoded(root, tmp_path)
    assert data.notes == (
        "1 image with transparency, which is dropped as timm and torchvision do; --background white puts them on white",
    )
    white = decoded(root, tmp_path, background="white")
    assert white.notes == ()
    whole = [images.train.take(np.flatnonzero(images.train.rows == 3)).pixels() for images in (data, white)]
    assert [int(pixels.mean()) for pixels in whole] == [0, 255]


def test_background_is_a_colour_of_images(root, sounds):
    assert open_source(tiny_config(data=f"imagefolder:{root}", background="Red")).preprocessing.background == "#ff0000"
    with pytest.raises(ConfigError, match=r"background.*chalk is no colour; give a name such as white, or #rrggbb"):
        tiny_config(background="chalk")
    with pytest.raises(ConfigError, match="--background: is for images, and the data are sounds; leave it out"):
        open_source(tiny_config(data=sounds, channels=1, background="white"))


def test_sounds_keep_their_own_rate_and_a_mixture_is_told(sounds, tmp_path):
    folder = tmp_path / "sounds" / "train" / "low"
    for i in range(10):
        (folder / f"{i}.wav").write_bytes(encoded(tone(200 + i, 0.3, 22_050), 22_050))
    (folder / "0.wav").write_bytes(encoded(np.zeros(4800, np.float32), 16_000))
    (folder / "1.wav").write_bytes(encoded(np.clip(9 * tone(200, 0.3, 22_050), -1, 1), 22_050))
    for path in (tmp_path / "sounds" / "train" / "high").iterdir():
        path.write_bytes(encoded(tone(2000 + int(path.stem), 0.3, 22_050), 22_050))
    config = tiny_config(data=sounds, channels=1)
    source = open_source(config)
    assert source.preprocessing.spectrogram == Spectrogram.at(22_050, seconds=0.3)
    assert stage.decode(runner_of(tmp_path / "work"), source, config.validation).notes == (
        "sample rates differ (19 at 22,050 Hz, 3 at 16,000 Hz): all are resampled to 22,050 Hz",
        "1 clip silent",
        "1 clip clipped",
    )


def test_what_decoding_needs_is_missed_at_once(root, monkeypatch):
    monkeypatch.setattr("edvit.inputs.formats.readable", lambda: ("PNG",))
    (root / "train" / "a" / "photo.HEIC").touch()
    with pytest.raises(MissingExtraError, match=r"HEIC images need pillow-heif: pip install 'edvit\[heif\]'"):
        open_source(tiny_config(data=f"imagefolder:{root}", channels=1))


def test_images_without_labels_are_seen_by_the_views_alone(root, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    rng = np.random.default_rng(7)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(frames / f"{i}.png")
    settings = {"data": f"imagefolder:{root}", "channels": 1, "base_epochs": 1, "views": 1}
    config = tiny_config(unlabeled=frames, **settings)
    build = opened(config, tmp_path / "work")
    plain = opened(tiny_config(**settings), tmp_path / "work")
    assert np.array_equal(build.data.train.rows, plain.data.train.rows)
    assert np.array_equal(build.data.validation.rows, plain.data.validation.rows)
    assert build.base.artifact == plain.base.artifact, "the base model has learnt from labels alone"
    views = stage.training_views(config, build.data)
    assert len(views.images) == len(plain.data.train) + 5
    assert (views.labels(0)[-5:] == UNLABELLED).all()
    assert "5 without labels" in build.data.notes


def test_balanced_class_weights(root, tmp_path):
    """n / (classes x images of the class): every class weighs the same in sum."""
    for extra in range(10, 40):
        shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / f"{extra}.png")
    config = tiny_config(data=f"imagefolder:{root}", channels=1, class_weights="balanced")
    build = opened(config, tmp_path / "work", start=untrained)
    weights = np.array(stage.class_weights(config, build.data))
    counts = np.bincount(build.data.train.labels)
    assert counts[0] > counts[1]
    np.testing.assert_allclose(weights * counts, len(build.data.train) / 2)
    assert stage.class_weights(tiny_config(), build.data) is None

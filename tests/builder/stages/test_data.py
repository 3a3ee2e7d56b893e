from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edvit.builder.stages import data as stage
from edvit.builder.stages.base import fine_tune_epochs
from edvit.builder.stages.teacher import teach
from edvit.errors import ConfigError, DataError, ModelError
from edvit.inputs.audio import Spectrogram
from named_sets import write_idx
from sounds import encoded, tone
from tiny_build import opened, runner_of, tiny_config

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
    build = opened(config, root.parent / "work")
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


def test_touching_a_file_redoes_the_decoding_and_nothing_else(root):
    first = prepared(root)
    path = root / "train" / "a" / "3.png"
    path.write_bytes(path.read_bytes())
    second = prepared(root)
    assert first[0].train.folder != second[0].train.folder
    assert first[0].train.digest == second[0].train.digest
    assert first[2] == second[2]


def test_training_and_validation_share_no_image(root):
    data, *_ = prepared(root, validation=0.2)
    assert set(data.train.rows).isdisjoint(data.validation.rows)
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert np.bincount(data.validation.labels).tolist() == [2, 2]


def test_defaults_suit_the_data():
    digits = stage.open_source(tiny_config(model=None))
    assert digits.model == "vit_digits_patch4_8"
    assert (digits.preprocessing.channels, digits.preprocessing.image_size) == (1, 8)
    assert stage.augmentation(tiny_config()) == stage.GLYPHS
    assert stage.augmentation(tiny_config(data="cifar10")) == stage.NATURAL
    assert stage.augmentation(tiny_config(augment="none")).is_identity


def test_normalisation_follows_the_channels(root):
    grey = stage.open_source(tiny_config(data=f"imagefolder:{root}", channels=1)).preprocessing
    colour = stage.open_source(tiny_config(data=f"imagefolder:{root}")).preprocessing
    assert (len(grey.mean), len(colour.mean)) == (1, 3)
    assert grey.mean[0] == pytest.approx(sum(colour.mean) / 3)


def test_image_folders_need_a_model(root):
    with pytest.raises(DataError, match="needs a --model"):
        stage.open_source(tiny_config(data=f"imagefolder:{root}", model=None))
    with pytest.raises(ModelError, match="did you mean vit_digits_patch4_8"):
        stage.open_source(tiny_config(model="vit_digit_patch4_8"))


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
    how = stage.open_source(tiny_config(data=sounds, channels=1)).preprocessing
    assert how.spectrogram == Spectrogram(seconds=0.3)
    asked = tiny_config(data=sounds, channels=1, seconds=0.5, sample_rate=8000, mels=32)
    assert stage.open_source(asked).preprocessing.spectrogram == Spectrogram(seconds=0.5, sample_rate=8000, mels=32)
    assert stage.augmentation(tiny_config(data=sounds)) == stage.SPECTROGRAMS
    with pytest.raises(ConfigError, match="mels"):
        stage.open_source(tiny_config(data=sounds, channels=1, mels=1))


def test_settings_of_sounds_are_refused_for_images(root):
    with pytest.raises(ConfigError, match="--sample-rate is for sounds"):
        stage.open_source(tiny_config(data=f"imagefolder:{root}", sample_rate=8000))


def test_a_validation_split_that_the_authors_chose_is_kept(sounds, tmp_path):
    config = tiny_config(data=sounds, channels=1)
    source = stage.open_source(config)
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
    data = stage.decode(runner_of(tmp_path / "work"), stage.open_source(config), 0.2)
    found = hashlib.sha256(repr(data.classes).encode())
    for images in (data.train, data.validation):
        found.update(repr((images.rows.tolist(), images.labels.tolist())).encode())
        found.update(images.pixels().tobytes())
    assert found.hexdigest()[:16] == "6418217110023c52"

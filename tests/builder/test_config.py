from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.builder.config import make_config
from edvit.builder.options import NEEDS
from edvit.errors import ConfigError
from edvit.fleet import local_fleet


def config(**settings):
    return make_config(**{"fleet": local_fleet(3), **settings})


def test_defaults_are_resolved():
    made = config()
    assert made.data == "digits"
    assert made.resolved_groups == 3
    assert config(groups=2).resolved_groups == 2
    assert made.workers == len(os.sched_getaffinity(0))


@given(st.integers(0, 100))
def test_views_are_one_per_epoch_up_to_a_few(epochs):
    views = config(recover_epochs=epochs).resolved_views
    assert 1 <= views <= max(1, epochs)
    assert config(recover_epochs=epochs, views=7).resolved_views == 7
    assert views <= config(recover_epochs=1000).resolved_views <= 20


@pytest.mark.parametrize(("epochs", "mix", "strength"), [(0, 0, 1), (15, 0, 1), (16, 0.5, 1.75), (60, 0.5, 1.75)])
def test_long_trainings_see_images_that_are_changed_more_unless_they_are_told_otherwise(epochs, mix, strength):
    made = config(recover_epochs=epochs)
    assert (made.resolved_mix, made.resolved_strength) == (mix, strength)
    told = config(recover_epochs=epochs, mix=0.25, strength=0)
    assert (told.resolved_mix, told.resolved_strength) == (0.25, 0)


def test_what_the_machine_chooses_is_no_setting_of_a_stage_and_what_the_user_chooses_is():
    assert config().training_precision == {}
    assert config(amp=True).training_precision == {"amp": True}
    assert config(amp=False).training_precision == {"amp": False}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("recover_epochs", -1),
        ("mix", 1.1),
        ("strength", -1),
        ("groups", 0),
        ("batch_size", 1),
        ("validation", 0.5),
        ("validation", 0),
        ("base_lr", 0),
        ("channels", 2),
        ("criterion", "luck"),
        ("attention", "all"),
        ("seed", -1),
        ("workers", 0),
        ("colour", "blue"),
        ("fisher", float("inf")),
        ("foreign", float("nan")),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(setting, value):
    with pytest.raises(ConfigError) as caught:
        config(**{setting: value})
    assert str(caught.value).startswith(f"{setting}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("without", ("fisher",)), ("fisher", 0.2), ("foreign", 0.5)],
    ids=["without", "fisher", "foreign"],
)
@pytest.mark.parametrize("by_channels", [{"prune": "channels"}, {"model": "vgg5"}], ids=["asked", "convnet"])
def test_settings_of_subspaces_are_refused_where_channels_are_pruned(setting, value, by_channels):
    with pytest.raises(ConfigError, match=f"{setting}: goes with subspace pruning only") as caught:
        config(**{setting: value}, **by_channels)
    assert "\n" not in str(caught.value)
    assert getattr(config(**{setting: value}), setting) == value
    assert getattr(config(**by_channels), setting) == getattr(config(), setting), "a default is not given"


WITHOUT_EFFECT = {
    "data_root": [{"data_root": "x"}, {"data_root": "x", "data": "imagefolder:y"}],
    "attention": [{"attention": "heads", "model": "vgg5"}],
    "class_names": [{"class_names": "x"}],
    "criterion": [{"criterion": "kl"}],
    "without": [{"without": ("rotation",), "prune": "channels"}],
    "fisher": [{"fisher": 0.2, "prune": "channels"}, {"fisher": 0.2, "without": ("rotation",)}],
    "foreign": [{"foreign": 0.2, "model": "vgg5"}],
    "calibration": [{"calibration": 9, "prune": "channels", "criterion": "random"}],
    "base_lr": [{"base_lr": 1e-3, "base_epochs": 0}],
    "recover_lr": [{"recover_lr": 1e-3, "recover_epochs": 0}],
    "strength": [{"strength": 2.0, "augment": "none"}],
    "batch_size": [
        {"batch_size": 8, "recover_epochs": 0},
        {"batch_size": 8, "recover_epochs": 0, "weights": "x", "base_epochs": 0},
    ],
    "memory_limit_mb": [{"memory_limit_mb": 9}, {"memory_limit_mb": 9, "model": "vgg5"}],
}


def test_an_option_that_would_change_nothing_is_refused():
    assert set(WITHOUT_EFFECT) == set(NEEDS)
    for option, cases in WITHOUT_EFFECT.items():
        for settings in cases:
            with pytest.raises(ConfigError, match=f"^{option}: .*(leave|not given)") as caught:
                config(**settings)
            assert "\n" not in str(caught.value)


def test_an_option_that_changes_something_is_taken():
    """The views are what the fusion learns from too, without any recovery; so are the weights of classes."""
    config(recover_epochs=0, views=3, mix=0.5, strength=2.0, unlabeled="x", class_weights="balanced", base_epochs=0)
    config(data="cifar10", data_root="x")
    config(recover_epochs=0, batch_size=8, weights="x")
    config(recover_lr=None, recover_epochs=0, base_lr=None, base_epochs=0, without=(), prune="channels")


def test_a_criterion_is_refused_where_nothing_is_scored():
    for prune in ("subspace", None):
        with pytest.raises(ConfigError, match="criterion: only channels are scored; give --prune channels"):
            config(criterion="magnitude", prune=prune)
    assert config(criterion="magnitude", prune="channels").resolved_criterion == "magnitude"
    assert config(criterion="apoz", model="vgg5").resolved_criterion == "apoz"


@pytest.mark.parametrize("settings", [{"model": "vgg5"}, {"model": "vgg5", "prune": "channels"}, {}])
def test_memory_is_limited_where_a_vit_is_scored_alone(settings):
    with pytest.raises(ConfigError, match="memory_limit_mb: only scoring a ViT by channels is bounded by it"):
        config(memory_limit_mb=16_000, **settings)
    assert config(memory_limit_mb=16_000, prune="channels").memory_limit_mb == 16_000


def test_a_config_does_not_change():
    made = config()
    with pytest.raises(Exception, match="frozen"):
        made.seed = 4

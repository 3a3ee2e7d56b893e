import numpy as np
import pytest

from edvit.builder.stages import split
from edvit.builder.stages.prepare import Teacher, open_source, prepare_data
from tiny_build import context_of, tiny_config


@pytest.mark.parametrize(("epochs", "views"), [(0, 4), (2, 4), (8, 1)])
def test_a_trained_split_shows_the_fusion_one_view(work, tiny_build, epochs, views):
    config = tiny_config(recover_epochs=epochs)
    context = context_of(config, open_source(config), work)
    data = prepare_data(context)
    teacher = Teacher(views=8 * (tiny_build.built.split.fusion,), blocks=())
    artifacts = split.view_features(context, data, teacher, tiny_build.built.split.submodels)
    for artifact in artifacts:
        assert np.load(artifact.folder / split.FEATURES).shape == (views * len(data.train), 16)

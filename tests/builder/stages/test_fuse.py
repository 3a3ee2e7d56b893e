import numpy as np
import pytest

from edvit.builder.stages.data import training_views
from edvit.builder.stages.export import FEATURES, VALIDATION, export
from edvit.builder.stages.fuse import fusion_views
from edvit.builder.stages.teacher import Teacher
from edvit.builder.train.device import CPU
from tiny_build import runner_of, tiny_config


@pytest.mark.parametrize(("epochs", "views"), [(0, 4), (2, 4), (8, 1)])
def test_sub_models_that_were_trained_show_the_fusion_one_view(work, tiny_build, epochs, views):
    config, built = tiny_config(recover_epochs=epochs), tiny_build.built
    any_result = built.fused.fusion
    teacher = Teacher(
        views=8 * (any_result,),
        blocks=(),
        base=any_result,
        rotated=False,
        preprocessing=built.source.preprocessing,
    )
    count = fusion_views(config, teacher)
    exported = export(
        runner_of(work),
        built.fused.recovered,
        training_views(config, built.data),
        count,
        validation=built.data.validation,
        preprocessing=built.source.preprocessing,
        devices=[CPU],
    )
    for artifact in exported:
        assert np.load(artifact.folder / FEATURES).shape == (views * len(built.data.train), 16)
        assert np.load(artifact.folder / VALIDATION).shape == (len(built.data.validation), 16)

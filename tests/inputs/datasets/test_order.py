import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key as timms_key

from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.order import in_order, natural_key

NAMES = st.text(st.sampled_from("aAbBzZéÉßİ 0129_-.٣"), min_size=1, max_size=8)


@given(st.lists(NAMES, max_size=12))
def test_classes_are_in_timms_order(names):
    ordered = in_order(names)
    assert [timms_key(name) for name in ordered] == [timms_key(name) for name in sorted(names, key=timms_key)]


@given(st.lists(NAMES, unique=True, max_size=12), st.randoms())
def test_names_that_tie_have_one_order_all_the_same(names, rng: random.Random):
    shuffled = list(names)
    rng.shuffle(shuffled)
    assert in_order(shuffled) == in_order(names)
    assert len({repr(natural_key(name)) for name in names}) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(1, 11)],
        ["ant", "Bee", "cat", "Dog"],
        ["Nut 2", "nut 10", "nut 1", "bolt"],
        ["n02", "n1", "n10", "n3"],
    ],
)
def test_a_folders_labels_are_those_that_timms_reader_gives(tmp_path, names):
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / name / "one.png")
    for split in ("train", "test"):
        images = read_split(f"imagefolder:{tmp_path}", split)
        timms, index = find_images_and_targets(str(tmp_path / split))
        assert {name: label for label, name in enumerate(images.classes)} == index
        ours = {str(path): int(label) for path, label in zip(images.paths, images.labels, strict=True)}
        assert ours == dict(timms)


def test_a_bundles_own_order_is_kept_by_name(tmp_path):
    for name in ("1", "2", "10"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "test" / name / "one.png")
    images = read_split(f"imagefolder:{tmp_path}", "test")
    assert images.labels.tolist() == [0, 1, 2]
    by_byte = images.with_classes(("1", "10", "2"))
    assert by_byte.labels.tolist() == [0, 2, 1]
    assert [by_byte.classes[label] for label in by_byte.labels] == [path.parent.name for path in by_byte.paths]

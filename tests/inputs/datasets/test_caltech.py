import pytest

from edvit.errors import DataError
from edvit.inputs.datasets import read_split


@pytest.fixture(params=["256_ObjectCategories", "caltech256/256_ObjectCategories", "."])
def folder(tmp_path, request):
    """The official layout with ten empty images a category (the reader decodes none), and its one stray file."""
    folder = tmp_path / request.param
    for number in range(1, 258):
        category = folder / f"{number:03}.{'clutter' if number == 257 else f'thing-{number}'}"
        category.mkdir(parents=True)
        for image in range(10):
            (category / f"{number:03}_{image:04}.jpg").touch()
    (folder / "198.thing-198" / "RENAME2").touch()
    return folder


def test_a_fifth_of_each_category_is_for_testing(tmp_path, folder):
    train, test = (read_split("caltech256", split, tmp_path) for split in ("train", "test"))
    assert len(train.classes) == 257
    assert train.classes[0] == "thing-1"
    assert train.classes[256] == "clutter"
    assert (len(train), len(test)) == (257 * 8, 257 * 2)
    assert not set(train.paths) & set(test.paths)
    for images in (train, test):
        assert [int(path.parent.name[:3]) - 1 for path in images.paths] == images.labels.tolist()


def test_missing_categories_are_named(tmp_path, folder):
    with pytest.raises(DataError, match="needs --data-root"):
        read_split("caltech256", "train")
    for path in (folder / "013.thing-13").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"013.thing-13: has 0 images"):
        read_split("caltech256", "train", tmp_path)
    (folder / "013.thing-13").rmdir()
    with pytest.raises(DataError, match="missing the folders of categories 013;"):
        read_split("caltech256", "train", tmp_path)

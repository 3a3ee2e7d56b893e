"""Folders as people have them: what is read, what is skipped and said so, and what is refused in one line.

Every tree is made here. What is read is held against a plain walk of the same tree and Pillow's own decoding.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edvit.bundle import MANIFEST
from edvit.errors import ConfigError, DataError
from edvit.inputs import formats
from edvit.inputs.datasets import check_apart, read_split
from edvit.inputs.preprocess import Preprocessing

formats.readable()  # makes pillow-heif known to Pillow
HOW = Preprocessing(image_size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Folder:
    """A data set's folder: `add("train/cat/1.png")` writes a picture of its own there."""

    def __init__(self, root):
        self.root, self.count = root, 0
        root.mkdir(exist_ok=True)

    def add(self, *names, content=None):
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.count += 1
            if content is not None:
                path.write_bytes(content)
            else:
                form = formats.EXTENSIONS.get(path.suffix.lower(), "PNG")
                picture(self.count).save(path, form)
        return self

    def read(self, split="train", **more):
        return read_split(f"imagefolder:{self.root}", split, **more)

    def refusal(self, split="train", **more):
        with pytest.raises(DataError) as caught:
            self.read(split, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def tree(tmp_path):
    """Two classes with two pictures in each split."""
    return Folder(tmp_path / "data").add(
        *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("bolt", "nut") for i in range(2))
    )


@pytest.fixture
def empty(tmp_path):
    return Folder(tmp_path / "data")


def by_hand(path):
    """The pixels as Pillow alone reads them."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def assert_pixels(images):
    for index, path in enumerate(images.paths):
        assert np.array_equal(images.prepared(index, HOW), by_hand(path)), path


def names(images):
    return sorted(
        f"{images.classes[label]}:{path.name}" for path, label in zip(images.paths, images.labels, strict=True)
    )


PLAIN = ["bolt:0.png", "bolt:1.png", "nut:0.png", "nut:1.png"]


def test_a_tidy_folder_has_nothing_to_say(tree):
    assert (names(tree.read()), tree.read().notes) == (PLAIN, ())
    assert_pixels(tree.read())


# --- what counts for nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clutter",
    [
        "train/bolt/._0.png", "train/bolt/.hidden.jpg", "train/bolt/Thumbs.db", "train/bolt/thumbs.db",
        "train/bolt/desktop.ini", "train/bolt/.DS_Store", "train/bolt/@eaDir/0.png", "train/bolt/deep/@eaDir/x/0.png",
        "train/bolt/.ipynb_checkpoints/0-checkpoint.png", "train/.ipynb_checkpoints/0.png", "train/@eaDir/0.png",
        "train/__MACOSX/0.png", "__MACOSX/train/bolt/._0.png", "@eaDir/x.png", ".git/config", "train/.DS_Store",
        "train/Thumbs.db", ".ipynb_checkpoints/a/0.png", "train/._bolt",
        "train/bolt/Icon\r",
    ],
)  # fmt: skip
def test_clutter_counts_for_nothing_at_any_depth(tree, clutter):
    tree.add(clutter, content=b"anything")
    images = tree.read()
    assert (names(images), images.classes, images.notes) == (PLAIN, ("bolt", "nut"), ())


def test_a_hidden_folder_is_no_class_and_no_split_of_a_plain_folder(empty):
    empty.add(*(f"{name}/{i}.png" for name in ("a", "b", ".c", "__MACOSX") for i in range(5)))
    assert empty.read().classes == ("a", "b")


def test_a_data_set_may_itself_lie_in_a_hidden_folder(tmp_path):
    hidden = Folder(tmp_path / ".cache").add("train/a/0.png", "train/b/0.png")
    assert len(hidden.read()) == 2


# --- what is skipped and counted ---------------------------------------------------------------------------


def test_what_is_not_read_is_counted_by_kind_in_one_line(tree):
    tree.add(*(f"train/bolt/{i}.MOV" for i in range(6)), content=b"video")
    for i in range(3):
        (tree.root / f"train/bolt/lost{i}.jpg").symlink_to(tree.root / "none.jpg")
    images = tree.read()
    assert names(images) == PLAIN
    assert images.notes == ("9 of 11 files of bolt skipped: 6 .mov, 3 broken links",)


def test_of_several_classes_all_files_are_counted_together(tree):
    tree.add("train/bolt/a.txt", "train/nut/b.txt", "train/nut/c.xml", "train/nut/noextension", content=b"x")
    os.mkfifo(tree.root / "train/nut/pipe.png")
    assert tree.read().notes == (
        "5 of 9 files of bolt, nut skipped: 2 .txt, 1 .xml, 1 file without an extension, 1 special file",
    )


def test_many_kinds_are_told_shortly(tree):
    tree.add(*(f"train/bolt/x.k{i}" for i in range(9)), content=b"x")
    (note,) = tree.read().notes
    assert note == "9 of 11 files of bolt skipped: 1 .k0, 1 .k1, 1 .k2, 1 .k3, 1 .k4, 4 of other kinds"


def test_files_beside_the_class_folders_are_counted(tree):
    tree.add("train/stray.jpg", "train/stray2.jpg", "train/labels.csv", content=b"x")
    assert tree.read().notes == ("3 files beside the class folders skipped: 2 .jpg, 1 .csv",)


def test_folders_beside_the_splits_are_named(tree):
    tree.add("unlabelled/0.png", "extra/0.png")
    assert tree.read().notes == ("not read: extra/, unlabelled/ beside train/",)


def test_a_class_folder_of_nothing_readable_says_what_lies_there(tree):
    tree.add(*(f"train/washer/{i}.mov" for i in range(3)), content=b"x")
    assert "train/washer: a class folder with no images (3 .mov skipped); fill it or remove it" in tree.refusal()


@pytest.mark.parametrize("place", ["out", "runs/1"])
@pytest.mark.parametrize(
    ("files", "what"),
    [
        ((".lock", "limit.json", "data-0/a.npy"), "a work folder of edvit build"),
        ((MANIFEST, "fusion.onnx"), "a bundle"),
    ],
)
def test_what_a_build_has_made_is_no_class_and_is_not_to_be_removed(empty, files, what, place):
    empty.add(*(f"{name}/{i}.png" for name in ("bolt", "nut") for i in range(3)))
    empty.add(*(f"{place}/{name}" for name in files), content=b"x")
    for split in ("train", "test"):
        assert empty.refusal(split) == (
            f"{empty.root / place}: is {what}, and no class; move it out of {empty.root}, and keep it"
        )
    shutil.rmtree(empty.root / place.partition("/")[0])
    empty.add(*(f"nut/{name}" for name in files), content=b"x")
    assert empty.read().classes == ("bolt", "nut"), "a class folder with images is one"


@pytest.mark.parametrize("kind", ["imagefolder", "audiofolder"])
@pytest.mark.parametrize("path", ["", "out", "bolt", "bolt/out", "deep/er/out", "train"])
def test_nothing_is_written_where_every_folder_is_a_class(empty, kind, path):
    empty.add("bolt/0.png", "nut/0.png")
    beside = empty.root.parent / (path.rpartition("/")[2] or "data-bundle")
    with pytest.raises(ConfigError) as caught:
        check_apart(f"{kind}:{empty.root}", "--work", empty.root / path)
    assert str(caught.value) == (
        f"--work {empty.root / path}: would be read as a part of the data in {empty.root}; give a folder outside it, "
        f"such as {beside}"
    )
    check_apart(f"{kind}:{empty.root}", "--work", beside)


@pytest.mark.parametrize("path", ["train", "train/out", "test/nut/out", "Val", "valid/out", "train/bolt"])
def test_nothing_is_written_into_a_split_there_is_or_would_be(tree, path):
    with pytest.raises(ConfigError, match="would be read as a part of the data"):
        check_apart(f"imagefolder:{tree.root}", "-o", tree.root / path)


@pytest.mark.parametrize("path", ["", "out", "bundles/train", "../data-out", ".out", "train/.out", "../other"])
def test_what_is_not_read_may_be_written(tree, path):
    check_apart(f"imagefolder:{tree.root}", "-o", tree.root / path)


def test_what_is_written_is_found_by_way_of_links(empty, tmp_path, monkeypatch):
    empty.add("bolt/0.png", "nut/0.png")
    far = tmp_path / "far"
    far.mkdir()
    (tmp_path / "door").symlink_to(empty.root)
    (empty.root / "washer").symlink_to(far)
    (empty.root / "out").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(empty.root)
    for path in (tmp_path / "door" / "new", far / "new", far, empty.root / "out", tmp_path / "door" / "out", "new"):
        for root in (empty.root, tmp_path / "door", "."):
            with pytest.raises(ConfigError, match="would be read"):
                check_apart(f"imagefolder:{root}", "-o", Path(path))
    for path in ("../new", "..", "bolt/../../new", empty.root / "nut" / ".." / ".." / "new"):
        check_apart("imagefolder:.", "-o", Path(path))
    check_apart("digits", "-o", Path("new"))


@pytest.mark.parametrize(
    "name",
    ["A.JPG", "a.Jpeg", "a.jfif", "a.JPE", "a.GIF", "a.bmp", "a.TIF", "a.tiff", "a.WebP", "a.jp2", "a.HEIC", "a.heif",
     "a.AVIF", "a.ppm"],
)  # fmt: skip
def test_a_picture_of_any_usual_kind_is_read_in_any_case(tree, name):
    tree.add(f"train/bolt/{name}")
    images = tree.read()
    assert (len(images), images.notes) == (5, ())
    assert_pixels(images)


def test_a_wrong_extension_is_decoded_as_what_it_is(tree):
    picture(7).save(tree.root / "train/bolt/really.jpg", "PNG")
    assert_pixels(tree.read())


# --- links -------------------------------------------------------------------------------------------------


def test_nested_folders_belong_to_their_class(tree):
    tree.add("train/bolt/2024/may/5.png", "train/bolt/2024/6.png")
    assert names(tree.read()) == sorted([*PLAIN, "bolt:5.png", "bolt:6.png"])
    assert_pixels(tree.read())


@pytest.mark.parametrize("target", ["train/bolt", "train", "", "..", "train/nut", "test", "test/nut", "train/nut/deep"])
def test_a_link_back_into_the_tree_is_counted_and_not_followed(tree, target):
    tree.add("train/nut/deep/2.png", "test/nut/deep/3.png")
    expected = names(tree.read())
    (tree.root / "train/bolt/loop").symlink_to(tree.root / target)
    images = tree.read()
    assert names(images) == expected
    assert images.notes == ("1 of 3 files of bolt skipped: 1 link to a folder that is read already",)
    assert tree.read("test").notes == ()


def test_links_to_folders_elsewhere_are_followed_each_once(tree, tmp_path):
    Folder(tmp_path / "pool").add("a/5.png", "b/6.png")
    Folder(tree.root / "originals").add("7.png")
    (tree.root / "train/bolt/one").symlink_to(tmp_path / "pool/a")
    (tree.root / "train/bolt/two").symlink_to(tree.root / "originals")
    (tree.root / "train/nut/three").symlink_to(tmp_path / "pool")
    (tree.root / "train/nut/self").symlink_to("self")
    images = tree.read()
    assert names(images) == sorted([*PLAIN, "bolt:5.png", "bolt:7.png"])
    assert "1 link to a folder that is read already" in images.notes[-1] and "1 broken link" in images.notes[-1]


def test_of_plain_class_folders_a_link_back_is_not_followed(empty):
    empty.add(*(f"{name}/{i}.png" for name in ("bolt", "nut") for i in range(5)))
    expected = sorted(names(empty.read()) + names(empty.read("test")))
    (empty.root / "bolt/loop").symlink_to("..")
    assert sorted(names(empty.read()) + names(empty.read("test"))) == expected


@pytest.mark.parametrize(
    ("link", "target"),
    [("train/washer", "train/nut"), ("test/washer", "train/nut"), ("train/washer", "train/nut/deep")],
)
def test_a_class_that_is_a_link_to_another_class_is_refused(tree, link, target):
    tree.add("train/nut/deep/2.png")
    (tree.root / link).symlink_to(tree.root / target)
    assert "are one folder by a link, or one lies in the other" in tree.refusal()


def test_a_split_that_is_a_link_to_another_is_refused(tree):
    (tree.root / "val").symlink_to("test")
    assert "are one folder by a link" in tree.refusal("test")


def test_classes_may_be_links_to_folders_elsewhere(tree, tmp_path):
    Folder(tmp_path / "pool").add("washer/0.png")
    (tree.root / "train/washer").symlink_to(tmp_path / "pool/washer")
    (tree.root / "train/bolt/again").symlink_to(tmp_path / "pool/washer")
    images = tree.read()
    assert names(images) == sorted([*PLAIN, "washer:0.png"])
    assert images.notes == ("1 of 3 files of bolt skipped: 1 link to a folder that is read already",)


@pytest.mark.parametrize("target", [".", ".."])
def test_a_class_that_is_a_link_to_a_folder_around_it_is_refused(tree, target):
    (tree.root / "train/zzz").symlink_to(target)
    assert "train/zzz: is a link to a folder around it" in tree.refusal()


def test_a_broken_link_in_place_of_a_class_is_counted(tree):
    (tree.root / "train/washer").symlink_to(tree.root / "nothing")
    images = tree.read()
    assert (images.classes, images.notes) == (
        ("bolt", "nut"),
        ("1 file beside the class folders skipped: 1 broken link",),
    )


# --- layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_val_beside_train_and_test_is_the_validation_split(tree, name):
    tree.add(f"{name}/nut/9.png", f"{name}/bolt/9.png")
    images = tree.read()
    assert images.notes == (f"validation: {name}/",)
    held_out = [images.paths[index] for index in images.validation]
    assert sorted(path.relative_to(tree.root).as_posix() for path in held_out) == [
        f"{name}/bolt/9.png",
        f"{name}/nut/9.png",
    ]
    assert names(images) == sorted([*PLAIN, "bolt:9.png", "nut:9.png"])
    assert (names(tree.read("test")), tree.read("test").validation) == (PLAIN, None)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_without_test_it_stands_in_for_it(tree, name):
    shutil.move(tree.root / "test", tree.root / name)
    assert (names(tree.read("test")), tree.read().validation) == (PLAIN, None)


def test_a_class_of_val_that_train_lacks_is_named(tree):
    tree.add("val/washer/0.png")
    assert "val: has classes that" in tree.refusal()


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "VALID")])
def test_other_spellings_of_the_splits_are_no_classes(tree, train, test):
    (tree.root / "train").rename(tree.root / train)
    (tree.root / "test").rename(tree.root / test)
    assert (names(tree.read()), names(tree.read("test"))) == (PLAIN, PLAIN)


def test_two_folders_for_one_split_are_refused(tree):
    tree.add("val/nut/0.png", "valid/nut/0.png")
    assert "has val/ and valid/, and both would be the validation split; merge or rename one" in tree.refusal()


def test_a_split_without_class_folders_is_refused(empty):
    empty.add("train/cat.0.jpg", "train/dog.0.jpg", "test/1.jpg")
    assert "train: has no class folders; the layout is" in empty.refusal()


def test_a_file_in_place_of_a_split_or_of_the_folder_is_refused(tmp_path, empty):
    empty.add("train", content=b"x")
    assert "has no class folders" in empty.refusal()
    with pytest.raises(DataError, match="is a file, and a folder is needed"):
        read_split(f"imagefolder:{empty.root / 'train'}", "train")


def test_a_data_set_one_folder_deeper_is_named(tmp_path, tree):
    with pytest.raises(DataError, match=f"the splits lie one folder deeper; give {tree.root}"):
        read_split(f"imagefolder:{tmp_path}", "train")


def test_a_class_may_be_called_train_or_valid(empty):
    empty.add(*(f"{name}/{i}.png" for name in ("bus", "car", "train", "valid") for i in range(5)))
    assert empty.read().classes == ("bus", "car", "train", "valid")


def test_a_plain_folder_is_cut_the_same_way_wherever_it_lies_and_whatever_is_added(empty, tmp_path):
    empty.add(*(f"{name}/{i}.png" for name in ("a", "b") for i in range(20)))
    shutil.copytree(empty.root, tmp_path / "copy")
    copy = Folder(tmp_path / "copy")
    keys = {
        split: [images.key(i) for i in range(len(images))]
        for split in ("train", "test")
        for images in [empty.read(split)]
    }
    assert [copy.read("test").key(i) for i in range(8)] == keys["test"]
    assert len(keys["train"]) == 32
    assert not set(keys["train"]) & set(keys["test"])


def test_400_to_2_and_a_thousand_classes_are_read(empty):
    empty.add(*(f"many/{i}.png" for i in range(400)), *(f"few/{i}.png" for i in range(2)))
    train, test = empty.read(), empty.read("test")
    assert np.bincount(train.labels).tolist() == [1, 320]
    assert np.bincount(test.labels).tolist() == [1, 80]


def test_a_thousand_classes_keep_their_numbers(empty):
    empty.add(*(f"{split}/{number}/0.ppm" for split in ("train", "test") for number in range(1000)))
    images = empty.read()
    assert images.classes == tuple(map(str, range(1000)))
    assert images.labels.tolist() == list(range(1000))


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", ["two words", " leading", "🦊", "語", "a" * 240, "semi;colon", "[x]", "100%", "-dash", "#1", "a=b", "it's"]
)
def test_odd_class_names_are_kept(tree, odd):
    tree.add(f"train/{odd}/0.png", f"test/{odd}/0.png")
    assert odd in tree.read().classes
    assert tree.read("test").classes == tree.read().classes
    assert_pixels(tree.read())


def test_classes_of_digits_alone_are_numbers(empty):
    empty.add(*(f"train/{number}/0.png" for number in range(1, 11)))
    assert empty.read().classes == tuple(map(str, range(1, 11)))


def test_composed_and_decomposed_names_are_one_class(tree):
    tree.add(f"train/{COMPOSED}/0.png", f"train/{DECOMPOSED}/1.png", f"test/{DECOMPOSED}/2.png")
    train, test = tree.read(), tree.read("test")
    assert train.classes == test.classes == ("bolt", COMPOSED, "nut")
    assert [name for name in names(train) if "caf" in name] == [f"{COMPOSED}:0.png", f"{COMPOSED}:1.png"]
    assert [name for name in names(test) if "caf" in name] == [f"{COMPOSED}:2.png"]
    # A bundle that was built when the form of the disk was kept.
    assert test.with_classes(("bolt", DECOMPOSED, "nut")).labels.tolist() == test.labels.tolist()


def test_class_order_may_be_written_in_either_form_and_with_a_mark(tree):
    tree.add(f"train/{DECOMPOSED}/0.png", f"test/{COMPOSED}/0.png")
    (tree.root / "class_order.txt").write_bytes(b"\xef\xbb\xbfnut\r\n" + f"{COMPOSED}\r\nbolt\r\n".encode())
    assert tree.read().classes == tree.read("test").classes == ("nut", COMPOSED, "bolt")


@pytest.mark.parametrize("name", [b"train/caf\xe9/0.png", b"train/bolt/caf\xe9.png", b"train/bolt/\xff/0.png"])
def test_a_name_that_is_no_text_is_refused_at_once(tree, name):
    tree.add(os.fsdecode(name), content=b"x")
    message = tree.refusal()
    assert message.encode().isascii()
    assert "the name is not valid UTF-8; rename it" in message
    assert "\\x" in message


@pytest.mark.parametrize("name", ["train/two\nlines/0.png", "train/bolt/a\tb.png", "train/bolt/x\u2028/0.png"])
def test_a_name_that_would_break_a_line_is_refused_in_one(tree, name):
    message = tree.add(name).refusal()
    assert message.isprintable()
    assert "the name has a line break or another control character; rename it" in message


def test_a_skipped_files_name_need_be_no_text(tree):
    tree.add(os.fsdecode(b"train/bolt/x.\xff"), content=b"x")
    assert tree.read().notes == ("1 of 3 files of bolt skipped: 1 .\\xff",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tree):
    (tree.root / "train/bolt/deep").mkdir(mode=0)
    assert "train/bolt/deep: cannot be read (PermissionError)" in tree.refusal()


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("Training", "validation"), ("train", "val")])
def test_splits_inside_the_classes_are_refused_with_the_layout(empty, first, second):
    empty.add(*(f"{name}/{split}/{i}.png" for name in ("bolt", "nut") for split in (first, second) for i in range(3)))
    for split in ("train", "test"):
        assert empty.refusal(split).endswith(
            f": has its splits inside the classes, as in bolt/{first} and bolt/{second}; move them around the classes: "
            f"{empty.root}/train/bolt and {empty.root}/test/bolt"
        )


def test_splits_of_other_names_are_no_classes(empty):
    empty.add(*(f"{split}/{name}/0.png" for name in ("bolt", "nut") for split in ("train_images", "test_images")))
    assert empty.refusal().endswith(
        ": train_images/ and test_images/ have the same folders and would be two classes; rename them to train and test"
    )


def test_a_folder_of_copies_of_one_picture_leaves_nothing_for_testing(empty):
    empty.add(*(f"{name}/{i}.png" for name in ("bolt", "nut") for i in range(5)), content=b"one")
    assert "no class has two files that differ" in empty.refusal("test")


def test_a_class_may_have_a_folder_that_is_called_like_one_split(empty):
    empty.add(*(f"{name}/{i}.png" for name in ("bolt/train", "nut") for i in range(5)))
    assert empty.read().classes == ("bolt", "nut")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/0.jpg", "labels/0.txt"),
        ("images/train/0.jpg", "labels/train/0.txt"),
        ("train/images/0.jpg", "train/labels/0.txt"),
        ("JPEGImages/0.jpg", "Annotations/0.xml"),
        ("images/0.jpg", "annotations/all.json"),
    ],
)
def test_data_for_detection_are_named(empty, images, labels):
    empty.add(images, images.replace("train", "val")).add(labels, labels.replace("train", "val"), content=b"0 0 0 1 1")
    assert "the layout of detection data (YOLO, COCO, VOC); a folder for each class is needed" in empty.refusal()

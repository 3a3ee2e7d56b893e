import errno
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.bundle import MANIFEST, check_target, clear_leftovers, read_bundle, write_bundle
from edvit.digest import sha256_of
from edvit.errors import BundleError
from edvit.fleet import local_fleet
from edvit.shape.image import ImageSize
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("made") / "bundle", submodels=3, classes=7)


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original.path, tmp_path / "bundle")


def edit(folder, change):
    """Change the manifest: `change` gets its values and edits them in place."""
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_was_written_is_read(original):
    again = read_bundle(original.path)
    assert read_bundle(str(original.path)) == again
    assert again == original
    assert again.digest == sha256_of(original.path / MANIFEST)
    assert len(again.manifest.files()) == 4
    assert again.model_path(again.manifest.fusion.model).is_file()


def test_writing_twice_gives_the_same_digest(original, tmp_path):
    assert write_tiny_bundle(tmp_path / "other", submodels=3, classes=7).digest == original.digest
    assert write_tiny_bundle(tmp_path / "seeded", submodels=3, classes=7, seed=1).digest != original.digest


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_any_changed_byte_of_a_model_is_found(original, data):
    model = data.draw(st.sampled_from(original.manifest.files()))
    path = original.model_path(model)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[at] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(altered)
        with pytest.raises(BundleError, match="altered or damaged"):
            read_bundle(original.path)
    finally:
        path.write_bytes(whole)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_changed_byte_of_the_manifest_is_refused_or_changes_the_digest(original, data):
    path = original.path / MANIFEST
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(altered)
        try:
            assert read_bundle(original.path).digest != original.digest
        except BundleError as error:
            assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)


def test_a_shortened_file(folder):
    path = folder / "submodel-1.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"submodel-1\.onnx: altered or damaged"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["submodel-0.onnx", "fusion.onnx"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        read_bundle(folder)


def test_a_folder_without_manifest_or_no_folder(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"no manifest\.json, so this is no bundle"):
        read_bundle(folder)
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(folder / "nowhere")
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(folder / "fusion.onnx")


@pytest.mark.parametrize("path", ["../fusion.onnx", "a/../../x.onnx", "/etc/passwd", "..", "", ".", "..\\x.onnx"])
def test_a_path_out_of_the_bundle(folder, path):
    (folder.parent / "fusion.onnx").write_bytes((folder / "fusion.onnx").read_bytes())
    edit(folder, lambda values: values["fusion"]["model"].update(file=path))
    with pytest.raises(BundleError, match=r"unsafe path|missing"):
        read_bundle(folder)


def test_a_link_out_of_the_bundle(folder):
    outside = folder.parent / "outside.onnx"
    (folder / "fusion.onnx").rename(outside)
    (folder / "fusion.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="a link out of the bundle"):
        read_bundle(folder)


@pytest.mark.parametrize("version", [3, 0, "1", None, [1], True, 2.0])
def test_an_unknown_version(folder, version):
    edit(folder, lambda values: values.update(version=version))
    with pytest.raises(BundleError, match=r"bundle version .* is unknown to this edvit \(it reads 1 and 2\)"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "zip"}', "[" * 100_000])
def test_a_manifest_that_is_none(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: not "):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(surprise=1), "surprise: unknown key"),
        (lambda v: v.pop("fusion"), "fusion: Field required"),
        (lambda v: v["submodels"].pop(), "the fusion does not take each sub-model once"),
        (lambda v: v["submodels"][0].update(id=5), "ids must be"),
        (lambda v: v["submodels"][0].update(classes=[0, 1]), "not a partition of the classes"),
        (lambda v: v["plan"]["placed"].pop(), "does not place each sub-model once"),
        (lambda v: v["plan"]["placed"][0].update(device="ghost"), "that the fleet lacks: ghost"),
        (lambda v: v["fusion"].update(submodels=[0, 0, 1]), "does not take each sub-model once"),
        (lambda v: v["fusion"]["model"].update(sha256="abc"), r"fusion\.model\.sha256"),
        (lambda v: v["submodels"][1].update(params=-1), r"submodels\.1\.params"),
    ],
)
def test_a_manifest_that_contradicts_itself(folder, change, message):
    edit(folder, change)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


def test_the_plan_says_where_a_submodel_is(original):
    assert [line.device for line in original.manifest.plan.placed if line.submodel == 2] == ["dev-3"]
    assert original.manifest.submodel(1).id == 1
    assert original.manifest.metric("accuracy") is None


def test_more_submodels_than_devices_share(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b", submodels=3, classes=3, fleet=local_fleet(2))
    assert [line.device for line in bundle.manifest.plan.placed] == ["dev-1", "dev-2", "dev-1"]


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half.onnx").write_bytes(b"x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_bundle(tmp_path / "bundle", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_bundle(folder, original):
    def fail(scratch):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_bundle(folder, fail)
    assert read_bundle(folder).digest == original.digest


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_old_one_there(folder, original, monkeypatch):
    rename, done = Path.rename, []

    def fail_the_second(path, other):
        done.append(path)
        if len(done) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fail_the_second)
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(Input/output error\); choose another -o"):
        write_tiny_bundle(folder, submodels=2, classes=4)
    assert read_bundle(folder).digest == original.digest
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_target_that_cannot_be_written_is_known_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"out: cannot be written \(Not a directory\); choose another -o"):
        check_target(tmp_path / "file" / "deep" / "out")
    assert check_target(tmp_path / "new" / "deep" / "out") == tmp_path / "new" / "deep" / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a trial leaves nothing"

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # the tests may run as root, who may write anywhere
    with pytest.raises(BundleError, match=r"out: cannot be written \(Permission denied\)"):
        check_target(tmp_path / "out")


def test_a_new_bundle_replaces_an_old_one(folder, original):
    new = write_tiny_bundle(folder, submodels=2, classes=4)
    assert new.digest != original.digest
    assert not (folder / "submodel-2.onnx").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "thesis", tmp_path / "file"):
        with pytest.raises(BundleError, match="exists and is no bundle"):
            write_tiny_bundle(target)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert write_tiny_bundle(tmp_path / "empty").manifest.version == 1


def test_what_a_killed_write_left_is_removed_and_nothing_else(folder):
    half = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
    (half / "submodel-0.onnx").write_bytes(b"half")
    aside = Path(tempfile.mkdtemp(prefix=".bundle-old-", dir=folder.parent))
    shutil.copytree(folder, aside / "bundle")
    for name in (".bundle-notes", ".bundle-12345678"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "mine.txt").write_text("mine")
    clear_leftovers(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".bundle-12345678", ".bundle-notes", "bundle"]
    read_bundle(folder)


def test_a_size_that_is_square_is_one_number_and_another_is_two(original, tmp_path):
    """Manifests from before there were other sizes than squares have one number, and keep their digest."""
    values = json.loads((original.path / MANIFEST).read_text())
    assert values["preprocessing"]["image_size"] == values["base"]["image_size"] == 16
    wide = write_tiny_bundle(tmp_path / "wide", size=ImageSize(96, 160))
    values = json.loads((wide.path / MANIFEST).read_text())
    assert values["preprocessing"]["image_size"] == values["base"]["image_size"] == [96, 160]
    again = read_bundle(wide.path)
    assert again == wide
    assert again.manifest.preprocessing.shape == (3, 96, 160)


@pytest.mark.parametrize("wrong", [0, [96], [96, 0], "96x160", [96, 160, 3], 1e6, None])
def test_a_size_that_is_none_is_refused(folder, wrong):
    edit(folder, lambda values: values["preprocessing"].update(image_size=wrong))
    with pytest.raises(BundleError, match=r"manifest\.json: preprocessing\.image_size: ") as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)

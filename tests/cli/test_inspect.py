import json
from collections import Counter

import pytest

from edvit.bundle import Metric, read_bundle
from edvit.cli.inspect import to_json
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("inspect") / "bundle", submodels=3, classes=5)


def test_shows_every_submodel_class_and_device(edvit, bundle):
    code, out, err = edvit("inspect", bundle.path)
    assert (code, err) == (0, "")
    for text in (bundle.digest, "class-0, class-3", "dev-3", "sub-model 2", "every file verified"):
        assert text in out
    assert max(len(line.rstrip()) for line in out.splitlines()[1:]) <= 80


def test_nothing_is_cut_off_a_narrow_table(edvit, bundle, monkeypatch):
    def shown(columns):
        monkeypatch.setenv("COLUMNS", columns)
        return Counter(character for character in edvit("inspect", bundle.path)[1] if character not in " \n─")

    assert shown("40") == shown("200")
    monkeypatch.delenv("COLUMNS")
    assert len(max(edvit("inspect", bundle.path)[1].splitlines(), key=len)) < 100, "no wider than it has to be"


def test_json_is_the_manifest_and_the_digest(edvit, bundle):
    code, out, _ = edvit("inspect", bundle.path, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["digest"] == bundle.digest
    assert values["manifest"] == json.loads((bundle.path / "manifest.json").read_text())


def test_metrics_are_listed_with_their_split(edvit, tmp_path):
    written = write_tiny_bundle(tmp_path / "bundle")
    metric = Metric(name="accuracy of [fused]", value=0.9751, split="test")
    manifest = written.manifest.model_copy(update={"metrics": (metric,)})
    (written.path / "manifest.json").write_text(manifest.model_dump_json())
    _, out, _ = edvit("inspect", written.path)
    assert "accuracy of [fused]" in out
    assert "97.51%" in out
    assert json.loads(to_json(read_bundle(written.path)))["manifest"]["metrics"][0]["value"] == 0.9751


def test_a_folder_that_is_no_bundle_is_one_line_and_exit_code_2(edvit, tmp_path):
    code, out, err = edvit("inspect", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("edvit: ")
    assert err.count("\n") == 1

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edvit.errors import WireError
from edvit.runtime.wire import topics
from edvit.runtime.wire.topics import ALIVE, ANY, BLOB, INFER, INFO, LOAD, REFUSE, Topic

PARTS = {"fleet": "shelf", "device": "pi-1.a", "submodel": "3", "sha256": "0" * 64, "instance": "ab12"}


@pytest.mark.parametrize("topic", [INFO, LOAD, REFUSE, INFER, BLOB, ALIVE], ids=lambda topic: topic.pattern)
def test_a_key_is_read_as_it_was_written(topic):
    names = re.findall(r"{(\w+)}", topic.pattern)
    parts = {name: PARTS[name] for name in names}
    assert topic.parts(topic.key(**parts)) == parts


def test_the_keys_of_the_wire():
    assert INFO.key(fleet="f", device="d") == "edvit/f/devices/d"
    assert LOAD.key(fleet="f", device="d") == "edvit/f/devices/d/load"
    assert INFER.key(fleet="f", submodel=2, device=ANY) == "edvit/f/infer/2/*"
    assert BLOB.key(fleet="f", sha256="a") == "edvit/f/blobs/a"


@pytest.mark.parametrize("key", ["", "edvit/f/infer/1", "edvit/f/infer/1/d/x", "edvit/f/**", "other/f/infer/1/d"])
def test_other_keys_are_refused(key):
    with pytest.raises(WireError):
        INFER.parts(key)


def test_every_topic_is_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "wire.md").read_text(encoding="utf-8")
    for topic in (value for value in vars(topics).values() if isinstance(value, Topic)):
        assert topic.pattern.replace("{", "<").replace("}", ">") in page

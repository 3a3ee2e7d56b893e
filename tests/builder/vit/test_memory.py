from __future__ import annotations

import subprocess
import sys

import pytest

from edvit.builder.vit import backbone
from edvit.builder.vit.memory import PROCESS_BYTES, SPARE, activation_bytes, images_within
from edvit.errors import ConfigError

MEASURE = """
import re, sys, torch
from pathlib import Path
from edvit.builder.vit import backbone, importance
torch.set_num_threads(1)
model = backbone.create("deit_tiny_patch16_224", image_size=112, classes=10)
importance.score(model, torch.randn(int(sys.argv[1]), 3, 112, 112), batch_size=int(sys.argv[1]))
# Not getrusage: its peak begins with that of the process that this one was forked from.
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def peak_bytes(images):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(images)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def tiny(**settings):
    return backbone.describe(backbone.template("deit_tiny_patch16_224", classes=10, **settings))


@pytest.mark.slow
def test_an_image_takes_no_more_than_is_estimated():
    few, many = peak_bytes(8), peak_bytes(40)
    estimated = activation_bytes(tiny(image_size=112))
    assert estimated / SPARE / 2 < (many - few) / 32 < estimated * 1.1
    assert few < PROCESS_BYTES + 8 * estimated + 100_000_000


def test_more_memory_holds_more_images():
    architecture = tiny()
    counts = [images_within(megabytes * 1_000_000, architecture) for megabytes in (1000, 2000, 4000)]
    assert 1 <= counts[0] < counts[1] < counts[2]
    assert images_within(2_000_000_000, tiny(image_size=112)) > counts[1]


def test_too_little_for_one_image_says_how_much_is_needed():
    with pytest.raises(ConfigError, match=r"500 MB .* one image takes (\d+) MB.*--memory-limit") as caught:
        images_within(500_000_000, tiny())
    needed = int(str(caught.value).partition("one image takes ")[2].partition(" MB")[0])
    assert images_within((needed + 1) * 1_000_000, tiny()) == 1

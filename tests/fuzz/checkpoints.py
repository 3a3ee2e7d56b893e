"""Parsers of what a builder is given: weights, what is written beside them, names of classes, and groups of files."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from edvit.builder.models.class_names import head_order
from edvit.builder.models.origin import CONFIG, PROCESSOR, find_weights
from edvit.builder.models.weights_file import read_weights
from edvit.inputs.datasets.groups import groups_of

_TENSOR = safetensors.torch.save({"head.weight": torch.zeros(2)})


def tensors(data: bytes) -> None:
    """A safetensors file."""
    _read(data, ".safetensors")


def pytorch(data: bytes) -> None:
    """A .pth file."""
    _read(data, ".pth")


def _read(data: bytes, suffix: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        find_weights(Path(file.name))
        read_weights([Path(file.name)])


def config(data: bytes) -> None:
    """config.json, a zero byte, and preprocessor_config.json; the latter may be missing."""
    first, mark, second = data.partition(b"\0")
    with tempfile.TemporaryDirectory(prefix="fuzz-config-") as name:
        folder = Path(name)
        (folder / "model.safetensors").write_bytes(_TENSOR)
        (folder / CONFIG).write_bytes(first)
        if mark:
            (folder / PROCESSOR).write_bytes(second)
        find_weights(folder)


def index(data: bytes) -> None:
    """The index of weights in several files."""
    with tempfile.TemporaryDirectory(prefix="fuzz-index-") as name:
        folder = Path(name)
        (folder / "a.safetensors").write_bytes(_TENSOR)
        (folder / "model.safetensors.index.json").write_bytes(data)
        find_weights(folder)


def class_names(data: bytes) -> None:
    """A name a line; the program tells by itself of text that is not UTF-8."""
    head_order(data.decode("utf-8", "replace").splitlines(), ["tench", "goldfish"], "names.txt")


def split_by(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(data)
        file.flush()
        groups_of(["a/one.wav", "b/two.wav"], file.name)


def seeds_of_tensors() -> list[bytes]:
    return [_TENSOR, safetensors.torch.save({"a": torch.zeros(1, dtype=torch.int64)}, {"architecture": "{}"})]


def seeds_of_pytorch() -> list[bytes]:
    made = []
    for content, is_zip in (({"a": torch.zeros(2)}, True), ({"a": torch.zeros(2)}, False), ({"args": {}}, False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        made.append(buffer.getvalue())
    return made


def seeds_of_config() -> list[bytes]:
    vit = {"model_type": "vit", "hidden_size": 192, "id2label": {"0": "a"}, "image_size": 224, "architectures": ["A"]}
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.5]}
    timms = {"architecture": "vit_tiny_patch16_224", "label_names": ["a"], "input_size": [3, 8, 8], "mean": [0.5]}
    return [
        json.dumps(vit).encode(),
        json.dumps(vit).encode() + b"\0" + json.dumps(processor).encode(),
        json.dumps(timms).encode(),
        json.dumps(
            {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 12}, "pretrained_cfg": timms}
        ).encode(),
    ]


def seeds_of_index() -> list[bytes]:
    return [b'{"weight_map": {"head.weight": "a.safetensors"}}']


def seeds_of_class_names() -> list[bytes]:
    return [b"tench\ngoldfish\n", b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n"]


def seeds_of_split_by() -> list[bytes]:
    return [b"one.wav,x\ntwo.wav,y\n", b'"a/one.wav",x\r\nb/two.wav,"y"\r\n']

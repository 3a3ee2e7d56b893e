from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from digit_images import digit_images
from edvit.builder.images import ImageSet
from edvit.builder.train import device, training
from edvit.builder.train.augment import NATURAL, Views
from edvit.builder.train.base import BaseTraining, accuracy, logits_of, train_base
from edvit.builder.train.device import CPU, TorchDevice, devices
from edvit.builder.train.recover import Recovery, recover
from edvit.builder.train.teacher import TeacherView
from edvit.builder.train.training import Schedule, train
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import ConfigError
from tiny_build import MODEL

torch.set_num_threads(1)


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor
    more: tuple[torch.Tensor, str]
    nothing: torch.Tensor | None = None


def test_tensors_inside_of_a_batch_are_moved_and_the_rest_is_left():
    moved = TorchDevice("meta").move([Batch(torch.ones(2), (torch.ones(3), "text")), 7])
    assert moved[0].images.is_meta and moved[0].more[0].is_meta
    assert moved[0].more[1] == "text" and moved[0].nothing is None and moved[1] == 7


def test_on_the_cpu_a_batch_is_the_same():
    batch = Batch(torch.ones(2), (torch.ones(3), "text"))
    assert CPU.move(batch).images is batch.images


def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no CUDA GPU here"):
        devices("cuda")


def test_every_gpu_takes_its_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("cuda") == (TorchDevice("cuda:0", mixed=True), TorchDevice("cuda:1", mixed=True))
    assert devices("cuda", amp=False) == (TorchDevice("cuda:0"), TorchDevice("cuda:1"))


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_trains_in_bfloat16_where_it_has_instructions_for_it_or_is_told_to(monkeypatch, has):
    known = {"avx512_bf16": has, "amx_tile": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert devices("cpu") == (TorchDevice("cpu", mixed=has),)
    assert devices("cpu", amp=True) == (TorchDevice("cpu", mixed=True),)
    assert devices("cpu", amp=False) == (CPU,)


def test_attention_in_bfloat16_on_a_cpu_is_not_pytorchs_fused_one():
    model = backbone.create(MODEL, image_size=8, channels=1, classes=10).eval()
    images = torch.randn(4, 1, 8, 8)
    for where, fused in ((CPU, True), (TorchDevice("cpu", mixed=True), False)):
        where.place(model)
        assert {block.attn.fused_attn for block in model.blocks} == {fused}
    with torch.no_grad(), TorchDevice("cpu", mixed=True).autocast():
        mixed = model(images)
    assert torch.allclose(mixed.float(), model(images), atol=0.01), "scores are of 0.2"


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    seen = []

    def loss_of(module, batch):
        output = module(batch)
        seen.append(output.dtype)
        return output.float().square().mean()

    def batches(_epoch, _first):
        yield torch.randn(8, 4)

    how = Schedule(epochs=2, lr=1e-2)
    settings = {"steps_per_epoch": 1, "schedule": how, "generator": torch.Generator()}
    trained = train(model, batches, loss_of, device=TorchDevice("cpu", mixed=True), **settings).model
    assert seen == [torch.bfloat16] * 2
    assert trained.weight.dtype == torch.float32
    train(model, batches, loss_of, **settings)
    assert seen[2:] == [torch.float32] * 2


class FewImages(ImageSet):
    """Grey noise in memory."""

    def __init__(self, count):
        self.labels_, self.count = np.arange(count) % 10, count

    labels = property(lambda self: self.labels_)

    def __len__(self):
        return self.count

    def pixels(self, index):
        return np.zeros((len(self.labels_[index]), 1, 8, 8), np.uint8)


def moved(module, name):
    """As `Module.to`, which cannot swap fake parameters that something else refers to."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for key, value in held.items():
                if value is not None:
                    there = value.detach().to(name)
                    held[key] = torch.nn.Parameter(there) if held is part._parameters else there
    return module


def fake_gpu(monkeypatch):
    """PyTorch's fake tensors know a GPU that is not there: an operation over two devices fails as on a real one.

    What they cannot answer, having no values, is what a loss is, and how long a gradient is. Going backward
    takes a driver; it computes where the tensors are that the loss was computed from.
    """
    mode, real = FakeTensorMode(allow_non_fake_inputs=True), torch.Tensor.to

    def to(tensor, *where, **options):
        if "cuda" not in str(where):
            return real(tensor, *where, **options)
        if isinstance(tensor, FakeTensor):
            return tensor  # is there already; to move it again takes a driver
        with mode:
            return real(mode.from_tensor(tensor), *where, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "backward", lambda _loss: None)
    monkeypatch.setattr(torch.Tensor, "item", lambda _value: 0.0)
    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: moved(module, "cpu"))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("streams", [True, False])
def test_recovery_leaves_no_tensor_on_another_device(monkeypatch, streams):
    views = Views(FewImages(8), NATURAL, 0, mix=0.5)
    model = backbone.create(MODEL, image_size=8, channels=1, classes=10)
    tokens, dim = backbone.describe(model).tokens, model.embed_dim
    fake_gpu(monkeypatch)
    outputs = TeacherView(
        logits=np.zeros((8, 10), np.float32),
        features=np.zeros((8, dim), np.float32),
        streams=np.zeros((8, 1, tokens, dim), np.float16) if streams else None,
    )
    trained = recover(
        model, (0, 1), views, [outputs], Recovery(Schedule(epochs=1, lr=1e-3), batch_size=4),
        rotation=torch.eye(dim), blocks=(0,) if streams else (), mean=(0.5,), std=(0.5,), seed=0,
        device=TorchDevice("cuda:0", mixed=True),
    ).model  # fmt: skip
    assert {parameter.device.type for parameter in trained.parameters()} == {"cpu"}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_training_a_base_leaves_no_tensor_on_another_device(monkeypatch):
    views = Views(FewImages(8), NATURAL, 0)
    model = backbone.create(MODEL, image_size=8, channels=1, classes=10)
    fake_gpu(monkeypatch)
    train_base(
        model, views, BaseTraining(Schedule(epochs=1, lr=1e-3), batch_size=4), mean=(0.5,), std=(0.5,), seed=0,
        device=TorchDevice("cuda:0", mixed=True),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_forgotten_move_would_be_noticed(monkeypatch):
    monkeypatch.setattr(device.TorchDevice, "move", lambda _self, value: value)
    with pytest.raises(RuntimeError, match="device"):
        test_training_a_base_leaves_no_tensor_on_another_device(monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_a_gpu_makes_the_views_that_the_cpu_makes(tmp_path, mix):
    views, index = Views(digit_images(tmp_path), NATURAL, 0, mix), np.arange(100)
    there = views.batch(1, index, TorchDevice("cuda:0"))
    assert there.device.type == "cuda"
    assert torch.allclose(there.cpu(), views.batch(1, index), atol=0.05), "of 255"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_trains_the_base_that_the_cpu_trains(tmp_path):
    digits = digit_images(tmp_path)
    models = []
    for where in (CPU, TorchDevice("cuda:0"), TorchDevice("cuda:0", mixed=True)):
        torch.manual_seed(0)
        model = backbone.create(MODEL, image_size=8, channels=1, classes=10)
        how = BaseTraining(Schedule(epochs=3, lr=1e-3))
        model = train_base(model, Views(digits, NATURAL, 0), how, mean=(0.5,), std=(0.5,), seed=0, device=where).model
        models.append(logits_of(FeatureExtractor(model, (0.5,), (0.5,)), digits))
    cpu, gpu, mixed = models
    assert torch.allclose(gpu, cpu, atol=0.02)
    assert torch.allclose(mixed, cpu, atol=0.3)
    assert abs(accuracy(mixed, digits) - accuracy(cpu, digits)) < 0.03

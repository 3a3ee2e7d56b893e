"""What trains and runs models in a build: the CPU, or CUDA GPUs with automatic mixed precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from edvit.builder.config import DeviceKind
from edvit.errors import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as torch names it: `cpu`, `cuda:0`, ...
        mixed: whether training runs matrix products in bfloat16; weights stay float32.
    """

    name: str = "cpu"
    mixed: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """Within the block, matrix products in bfloat16 if `mixed`."""
        if not self.mixed:
            return nullcontext()
        context: AbstractContextManager[Any] = torch.autocast(torch.device(self.name).type, dtype=torch.bfloat16)
        return context

    def move(self, value: Value) -> Value:
        """A tensor, or a tuple, list or dataclass with tensors in it, with these on the device."""
        moved: Any = value
        if isinstance(value, Tensor):
            moved = value.to(self.name, non_blocking=True)
        elif isinstance(value, tuple | list):
            moved = type(value)(self.move(part) for part in value)
        elif is_dataclass(value) and not isinstance(value, type):
            moved = replace(value, **{field.name: self.move(getattr(value, field.name)) for field in fields(value)})
        result: Value = moved
        return result


CPU = Device()


def devices(kind: DeviceKind) -> Sequence[Device]:
    """All of a kind that there are here; independent jobs take turns on them.

    Raises:
        ConfigError: PyTorch sees none.
    """
    if kind == "cpu":
        return (CPU,)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError("--device cuda: PyTorch sees no CUDA GPU here; leave it out, or install torch for CUDA")
    return tuple(Device(f"cuda:{index}", mixed=True) for index in range(count))

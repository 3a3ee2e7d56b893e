"""What trains and runs models in a build: the CPU or CUDA GPUs, with automatic mixed precision (`--amp`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn

from edvit.builder.options import DeviceKind
from edvit.errors import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class TorchDevice:
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

    def place(self, model: nn.Module) -> None:
        """Move a model there, to be trained.

        On a CPU the fused attention of PyTorch is slow in bfloat16, most of all backward: three times as slow, for 50
        tokens, as the matrix products and the softmax that it stands for. So timm's attention computes these.
        """
        model.to(self.name)
        if self.mixed and self.name == "cpu":
            for module in model.modules():
                if isinstance(module, Attention):
                    module.fused_attn = False

    @contextmanager
    def default(self) -> Iterator[None]:
        """Within the block, new tensors are made there, and convolutions of float32 are not rounded to TF32."""
        if self.name == "cpu":
            yield
            return
        with torch.device(self.name), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield

    def random_states(self) -> list[Tensor]:
        """States of torch's global generators that draw there, uint8 each."""
        return [torch.get_rng_state(), *([] if self.name == "cpu" else [torch.cuda.get_rng_state(self.name)])]

    def restore_random(self, states: Sequence[Tensor]) -> None:
        """Take up what `random_states` gave."""
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, self.name)

    @property
    def exact(self) -> TorchDevice:
        """The same without mixed precision."""
        return replace(self, mixed=False)

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


CPU = TorchDevice()


def devices(kind: DeviceKind, amp: bool | None = None) -> Sequence[TorchDevice]:
    """All of a kind that there are here; independent jobs take turns on them.

    Args:
        amp: whether training is in mixed precision; None: on GPUs, and on CPUs that have instructions for bfloat16.

    Raises:
        ConfigError: PyTorch sees none.
    """
    if kind == "cpu":
        return (TorchDevice("cpu", mixed=cpu_has_bfloat16() if amp is None else amp),)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError("--device cuda: PyTorch sees no CUDA GPU here; leave it out, or install torch for CUDA")
    return tuple(TorchDevice(f"cuda:{index}", mixed=amp is not False) for index in range(count))


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 by instructions of its own (AVX512_BF16, AMX)."""
    # Older versions of torch cannot be asked in public; float32 is then right on every CPU.
    asked: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(asked.get(name)) for name in ("avx512_bf16", "amx_tile"))

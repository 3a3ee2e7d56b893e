"""A layer of leaky integrate-and-fire neurons, over all time steps at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edvit.errors import MissingExtraError

TAU = 2.0
"""Steps in which the membrane's potential leaks away."""
THRESHOLD = 1.0


class Lif(nn.Module):
    """Currents `[steps, ...]` to spikes of 0 or 1, `[steps, ...]`: charge, fire at the threshold, reset to 0.

    Training goes through spikingjelly's LIFNode, for its surrogate gradient (arctangent). Evaluation is the same
    recursion written out, so that it can be exported to ONNX with its steps unrolled.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from spikingjelly.activation_based import neuron, surrogate
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"spiking networks need {error.name}: pip install 'edvit[bench]'") from None
        self.node = neuron.LIFNode(
            tau=TAU, v_threshold=THRESHOLD, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m"
        )

    def forward(self, current: Tensor) -> Tensor:
        if self.training:
            spikes: Tensor = self.node(current.float())  # a potential of bfloat16 would lose small currents
            self.node.reset()  # also so that no graph is kept, which could not be copied
            return spikes
        return unrolled(current)


def unrolled(current: Tensor) -> Tensor:
    """The recursion of `Lif` without gradients."""
    potential = torch.zeros_like(current[0])
    fired = []
    for step in range(current.shape[0]):
        potential = potential + (current[step] - potential) / TAU
        spikes = (potential >= THRESHOLD).to(current.dtype)
        potential = potential * (1.0 - spikes)
        fired.append(spikes)
    return torch.stack(fired)

"""timm's AdaMuon with Nesterov momentum (arXiv 2507.11005), orthogonalising in float32.

timm orthogonalises in bfloat16, without a setting for it. For matrices as small as a sub-model's that takes a CPU
nearly twice as long, and thirteen times as long where it has no instructions for bfloat16.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim.muon import Muon, get_adamuon_lr_scale, zeropower_via_newtonschulz
from torch import Tensor

COEFFICIENTS = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
"""Coefficients of the Newton-Schulz iteration, a step each; timm's `quintic`, its default."""
SMALLEST, LARGEST_RATIO = 4, 128.0
"""The shortest side, and the largest ratio of sides, of what is orthogonalised; timm's rule."""


def is_orthogonalised(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, or a kernel that flattens to one, whose steps are orthogonalised."""
    shape = parameter.shape
    if parameter.ndim < 2 or 1 in shape[:2]:
        return False
    sides = shape[0], math.prod(shape[1:])
    return min(sides) >= SMALLEST and max(sides) <= LARGEST_RATIO * min(sides)


class AdaMuon(Muon):  # type: ignore[misc]
    """timm's optimiser: it steps what is not orthogonalised (NAdamW), and this class what is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step from the gradients that are there; `closure` is not supported."""
        if closure is not None:
            raise ValueError("AdaMuon takes no closure")
        matrices = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and not group.get("use_fallback", False) and is_orthogonalised(parameter)
        ]
        for _, parameter, _ in matrices:
            parameter.grad = None  # timm passes over what has no gradient
        super().step()
        for group, parameter, gradient in matrices:
            self._step_matrix(group, parameter, gradient)
            parameter.grad = gradient

    def _step_matrix(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        """In place; timm's arithmetic in timm's order."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        momentum, squares = state["momentum_buffer"], state["exp_avg_sq"]
        lr, beta, eps = group["lr"], group["betas"][1], group["eps"]
        parameter.mul_(1 - lr * group["weight_decay"])
        momentum.lerp_(gradient, 1.0 - group["momentum"])
        update = zeropower_via_newtonschulz(
            gradient.lerp(momentum, group["momentum"]).flatten(1),
            group["ns_steps"],
            COEFFICIENTS,
            eps=eps,
            dtype=torch.float32,
        )
        scale, _ = get_adamuon_lr_scale(update.shape, "match_rms_adamw")
        update = update.reshape(parameter.shape)
        squares.mul_(beta).addcmul_(update, update, value=1.0 - beta)
        adapted = update / squares.sqrt().add_(eps)
        adapted = adapted / adapted.norm().add_(eps)
        parameter.add_(adapted, alpha=-lr * scale)

"""AdamW, from torch's own fused kernel, without `torch.optim.Optimizer`.

That class imports torch's compiler when the first one is made: a second or two in every process that trains, and
100 MB. The kernel and its bits are the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), on matrices only."""

    def __init__(self, weights: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.state: dict[str, dict[str, Tensor]] = {
            name: {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update by the weights' gradients, which are dropped. A weight without one stays as it is."""
        given = [name for name, weight in self.weights.items() if weight.grad is not None]
        for decays in (True, False):
            names = [name for name in given if (self.weights[name].ndim > 1) == decays]
            if not names:
                continue
            adamw(
                [self.weights[name] for name in names],
                [grad for name in names if (grad := self.weights[name].grad) is not None],
                [self.state[name]["exp_avg"] for name in names],
                [self.state[name]["exp_avg_sq"] for name in names],
                [],
                [self.state[name]["step"] for name in names],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=self.weight_decay if decays else 0.0,
                eps=EPSILON,
                maximize=False,
            )
        for weight in self.weights.values():
            weight.grad = None

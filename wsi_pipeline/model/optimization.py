"""Optimizer, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wsi_pipeline.config import TrainingOptions


def make_optimizer(
    parameters: Iterable[nn.Parameter], options: TrainingOptions, *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of `options`; `fused` selects fused CUDA kernels, which RMSProp does not have."""
    shared: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, **shared, momentum=options.momentum, fused=fused)
    decay, epsilon = options.squared_gradient_decay, options.epsilon
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **shared, betas=(options.momentum, decay), eps=epsilon, fused=fused)
    return torch.optim.RMSprop(parameters, **shared, alpha=decay, eps=epsilon, momentum=options.momentum)


def learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of a training of `steps` steps."""
    schedule, rate = options.schedule, options.learning_rate
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.kind == "step":
        return rate * schedule.factor ** (step * options.batch_size // schedule.every_patches)
    if schedule.kind == "cosine":
        done = (step - schedule.warmup_steps) / max(1, steps - 1 - schedule.warmup_steps)
        share = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return rate * (schedule.final_share + (1 - schedule.final_share) * share)
    return rate


class WeightAverage:
    """Exponential moving average of a network's weights and batch-norm statistics.

    After Polyak and Juditsky (SIAM J. Control Optim. 30, 1992), who take the plain mean.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._source = network
        self._decay = decay
        self._steps = 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @property
    def state(self) -> dict[str, Tensor]:
        """State dict of the averaged network."""
        return self.network.state_dict()

    def update(self) -> None:
        """Add the weights after a step. The decay rises from 1/11 on, so that the initial weights fade early."""
        self._steps += 1
        keep = min(self._decay, self._steps / (self._steps + 10))
        new = self._source.state_dict()
        with torch.no_grad():
            for name, own in self.state.items():
                if own.is_floating_point():
                    own.lerp_(new[name], 1 - keep)
                else:
                    own.copy_(new[name])

    def checkpoint(self) -> dict[str, Any]:
        """Content for `restore`."""
        return {"state": self.state, "steps": self._steps}

    def restore(self, content: dict[str, Any]) -> None:
        """Restore from the content of a checkpoint."""
        self.network.load_state_dict(content["state"])
        self._steps = content["steps"]

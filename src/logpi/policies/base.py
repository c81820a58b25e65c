"""What every policy offers to the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says of a batch; all [batch, time] but `final_values` [batch]. Padding holds zeros."""

    log_probs: Tensor  # of the batch's actions, with gradient
    entropies: Tensor  # of the distributions over actions, with gradient
    values: Tensor | None = None  # V before each action, with gradient
    final_values: Tensor | None = None  # V where a truncated trajectory stopped; 0 where one terminated


class Policy(Protocol):
    """A network with named weights that scores actions."""

    has_values: bool

    def evaluate(self, actions: Tensor, mask: Tensor, truncated: Tensor, inputs: tuple[Any, ...]) -> PolicyOutput:
        """Score actions [batch, time] under the current weights; differentiable."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the weights that the learner writes, by name."""
        ...

    def frozen_copy(self) -> Policy:
        """Return a policy with today's weights that later updates don't change (the KL reference)."""
        ...

    def weights_changed(self) -> None:
        """Refresh what was derived from the weights (sampling weights); the learner calls it after each update."""
        ...


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put values [mask.sum()] at the true entries of `mask` [batch, time], zeros elsewhere; differentiable."""
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask, values)

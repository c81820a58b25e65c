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
    entropies: Tensor | None = None  # of the distributions over actions, with gradient; None where nobody asked
    values: Tensor | None = None  # V before each action, with gradient
    final_values: Tensor | None = None  # V where a truncated trajectory stopped; 0 where one terminated
    kl_exact: Tensor | None = None  # KL(π‖π_ref) before each action, with gradient; None without a reference
    states: Tensor | None = None  # [mask.sum(), width]: what each distribution is computed from


@dataclass(frozen=True)
class Reference:
    """What an exact KL is against: a frozen policy and what it computes its distributions from."""

    policy: Any  # of the same kind as the one that is evaluated
    states: Tensor  # [batch, time, width], its `PolicyOutput.states`; padding holds zeros


class Policy(Protocol):
    """A network with named weights that scores actions."""

    has_values: bool

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        """Score actions [batch, time] under the current weights; differentiable. Entropies where asked for, or free."""
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
    """Put values [mask.sum(), ...] at the true entries of `mask` [batch, time], zeros elsewhere; differentiable."""
    rest = values.shape[1:]
    out = torch.zeros((*mask.shape, *rest), dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask.reshape(*mask.shape, *[1] * len(rest)), values)


def kl_exact(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """KL(π‖π_ref) = Σ_a π(a) (log π(a) − log π_ref(a)) over the last axis, in nats: no estimate, every action counts.

    As a term of the loss its gradient is that of this KL in each visited state: partial, it lacks the part by which
    actions lead to other states. As a term of the reward, detached, its score-function gradient is that missing part.
    In both, with weights 1/trajectories, the two add up to the exact gradient of the KL of whole trajectories, with
    less variance than k1 in the reward: the average over the next action is taken, not sampled.
    """
    return (log_probs.exp() * (log_probs - reference_log_probs)).sum(-1)

"""A fully connected policy over discrete actions, with a value network of its own."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from logpi.policies.base import PolicyOutput, Reference, kl_exact, scatter
from logpi.randomness import Stream, library_draws


def _layers(sizes: list[int], last_gain: float) -> nn.Sequential:
    """Linear layers with tanh between, orthogonal weights (gain √2, `last_gain` on the output), zero biases."""
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        is_last = len(modules) == 2 * (len(sizes) - 2)
        nn.init.orthogonal_(layer.weight, last_gain if is_last else 2**0.5)
        nn.init.zeros_(layer.bias)
        modules += [layer] if is_last else [layer, nn.Tanh()]
    return nn.Sequential(*modules)


class MLP:
    """π(a|s) = softmax(f(s)), V(s) = g(s), two networks of the same hidden sizes. Observations are [time, features]."""

    has_values = True

    def __init__(self, num_features: int, num_actions: int, hidden_sizes: tuple[int, ...] = (64, 64), seed: int = 0):
        with library_draws(seed, Stream.INITIALISATION):
            self.module = nn.ModuleDict(
                {
                    "policy": _layers([num_features, *hidden_sizes, num_actions], last_gain=0.01),
                    "value": _layers([num_features, *hidden_sizes, 1], last_gain=1.0),
                }
            )

    def action_log_probs(self, observations: Tensor) -> Tensor:
        """Return log π(·|s) for observations [..., features], over all actions."""
        return torch.log_softmax(self.module["policy"](observations), dim=-1)

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        """Score actions; each trajectory's observations hold one more row than actions: the state it stopped in."""
        observations = torch.cat([observed[:-1] for observed in inputs])
        log_probs = self.action_log_probs(observations)
        chosen = log_probs.gather(-1, actions[mask][:, None])[:, 0]
        entropies = -(log_probs.exp() * log_probs).sum(-1) if with_entropy else None
        values = self.module["value"](observations)[:, 0]
        with torch.no_grad():
            final = self.module["value"](torch.stack([observed[-1] for observed in inputs]))[:, 0]
        return PolicyOutput(
            log_probs=scatter(chosen, mask),
            entropies=None if entropies is None else scatter(entropies, mask),
            values=scatter(values, mask),
            final_values=final * truncated,
            kl_exact=None if reference is None else scatter(kl_exact(log_probs, reference.states[mask]), mask),
            states=log_probs,  # few actions: the distributions themselves
        )

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def frozen_copy(self) -> MLP:
        copied = copy.deepcopy(self)
        copied.module.requires_grad_(False)
        return copied

    def weights_changed(self) -> None:
        """Nothing is derived from the weights."""

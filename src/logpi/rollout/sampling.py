"""Drawing an action or token: the only room where it happens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 256


def with_exploration(log_probs: Tensor, epsilon: float) -> Tensor:
    """Return log μ, μ = (1 − ε) π + ε/|A|: with chance ε an action drawn uniformly; log_probs [rows, actions] of π.

    Draws from μ need importance weights π/μ; without them they climb another objective than the policy's.
    """
    return torch.log((1 - epsilon) * log_probs.exp() + epsilon / log_probs.shape[-1])


def draw(weights: Tensor, uniforms: np.ndarray) -> Tensor:
    """Draw one action a row by inverse CDF: weights [rows, actions], π but for a factor of the row, and one uniform
    number a row -> actions [rows].

    Two levels (block sums, then inside the block), added up in float64. A row's result depends on its own weights and
    uniform number only. An action of probability 0 is never drawn.
    """
    rows, num_actions = weights.shape
    numbers = torch.from_numpy(np.asarray(uniforms)).to(torch.float64)[:, None]
    if num_actions <= BLOCK:
        return _inside(weights, numbers * weights.sum(-1, keepdim=True).to(torch.float64))
    missing = -num_actions % BLOCK
    blocks = (torch.nn.functional.pad(weights, (0, missing)) if missing else weights).view(rows, -1, BLOCK)
    block_ends = blocks.sum(-1).to(torch.float64).cumsum(-1)
    target = numbers * block_ends[:, -1:]
    # the first end above the target: its block has probability of its own, however small
    chosen = (block_ends > target).int().argmax(-1)
    row = torch.arange(rows)
    before = torch.nn.functional.pad(block_ends, (1, 0))[row, chosen]
    return chosen * BLOCK + _inside(blocks[row, chosen], target - before[:, None])


def _inside(weights: Tensor, target: Tensor) -> Tensor:
    """Return the first action of a row [rows, actions] whose end lies above the target [rows, 1]."""
    above = weights.to(torch.float64).cumsum(-1) > target
    # rounding may leave the target at or past the last end: then the likeliest action
    return torch.where(above.any(-1), above.int().argmax(-1), weights.argmax(-1))

"""What a baseline saves of REINFORCE's variance: each prompt's best one, known beforehand or estimated from a group.

A baseline is a weighted mean of rewards, b = E[w R]/E[w]. `mean`: w = 1, as in RLOO. `by_length`: w = |y|, as in OPO
(Hao et al. 2025). `optimal`: w = |s|², s = ∇log π(y|x), which minimises E|(R − b) s|² (Greensmith et al. 2004).
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from logpi.exact import tabular
from logpi.exact.bias import GROUP_SIZE
from logpi.exact.tabular import COMPLETIONS, NUM_PROMPTS, PREFIXES, VOCABULARY, Countable


def completion_scores(policy: Countable) -> Tensor:
    """Return s = ∇log π(completion | prompt), [prompts, completions, parameters]."""
    each = tabular.scores(policy).reshape(NUM_PROMPTS, len(PREFIXES), VOCABULARY, -1)
    return torch.stack([each[:, tabular.states(y), torch.tensor(y)].sum(1) for y in COMPLETIONS], 1)


def weights(policy: Countable) -> dict[str, Tensor]:
    """Return what each baseline weighs rewards with, by name, [prompts, completions]."""
    squares = completion_scores(policy).pow(2).sum(2)
    lengths = torch.tensor([float(len(y)) for y in COMPLETIONS], dtype=torch.float64)
    return {"mean": torch.ones_like(squares), "by_length": lengths.expand_as(squares), "optimal": squares}


def known_baseline(weight: Tensor, policy: Countable, kind: str) -> Tensor:
    """Return b = E[w R]/E[w] of each prompt, [prompts]."""
    chance = tabular.probabilities(policy).detach() * weight
    return (chance * tabular.returns(kind)).sum(1) / chance.sum(1)


def variance_with(baseline: Tensor, policy: Countable, kind: str, group_size: int = GROUP_SIZE) -> float:
    """Return E|g − ∇J|²/|∇J|² of one group's g = Σ_i (R_i − b_x) s_i / G, `baseline` b [prompts], as `Measured` has it.

    Members are independent: E|g|² = E_x[E|(R − b) s|²/G + (1 − 1/G) |∇J_x|²].
    """
    chance = tabular.probabilities(policy).detach()
    each = (tabular.returns(kind) - baseline[:, None])[..., None] * completion_scores(policy)
    means = (chance[..., None] * each).sum(1)  # ∇J of each prompt, whatever the baseline
    squares = (chance * each.pow(2).sum(2)).sum(1) / group_size + (1 - 1 / group_size) * means.pow(2).sum(1)
    return float(squares.mean() / means.mean(0).pow(2).sum()) - 1


def variance_left_out(weight: Tensor, policy: Countable, kind: str, group_size: int = GROUP_SIZE) -> float:
    """Return the same where each baseline is estimated from the others, b_i = Σ_{j≠i} w_j R_j / Σ_{j≠i} w_j."""
    chance, scores, rewards = tabular.probabilities(policy).detach(), completion_scores(policy), tabular.returns(kind)
    groups = list(combinations_with_replacement(range(len(COMPLETIONS)), group_size))
    repeats = [math.prod(math.factorial(n) for n in Counter(group).values()) for group in groups]
    orders = math.factorial(group_size) / torch.tensor(repeats, dtype=torch.float64)
    members, mean, square = torch.tensor(groups), torch.zeros_like(scores[0, 0]), 0.0
    for x in range(NUM_PROMPTS):
        w, r, s = weight[x][members], rewards[x][members], scores[x][members]
        others = ((w * r).sum(1, keepdim=True) - w * r) / (w.sum(1, keepdim=True) - w)
        g = ((r - others)[..., None] * s).mean(1)
        likelihood = orders * chance[x][members].prod(1) / NUM_PROMPTS
        mean += likelihood @ g
        square += float(likelihood @ g.pow(2).sum(1))
    return square / float(mean.pow(2).sum()) - 1

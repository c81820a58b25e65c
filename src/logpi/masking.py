"""The only reductions over padded axes. A denominator is always an argument or a named count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor


def masked_sum(values: Num[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Num[Tensor, ""]:
    """Sum over the true entries of `mask`; padding may hold anything, NaN included."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Num[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the true entries of `mask`; 0 when there is none."""
    num_true = mask.sum()
    return masked_sum(values, mask) / num_true.clamp(min=1)


def sum_over_time(values: Num[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Num[Tensor, " batch"]:
    """Sum each row [batch, time] -> [batch] over its true entries."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(1)


def reverse_cumulative_sum(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], discount: float = 1.0
) -> Float[Tensor, "batch time"]:
    """Return G_t = x_t + discount * G_{t+1} along time, [batch, time]; padding gives 0."""
    out = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        running = torch.where(mask[:, t], values[:, t] + discount * running, torch.zeros_like(running))
        out[:, t] = running
    return out


def group_sums(
    values: Num[Tensor, "batch *rest"], group: Int[Tensor, " batch"]
) -> tuple[Num[Tensor, "batch *rest"], Int[Tensor, " batch"]]:
    """Return (sum over the row's group, size of the row's group) for every row, [batch, ...] each.

    Groups are added in row order, in the input's precision: exchanging rows of a group changes rounding only.
    """
    _, index = torch.unique(group, return_inverse=True)
    num_groups = int(index.max()) + 1
    totals = values.new_zeros((num_groups, *values.shape[1:])).index_add_(0, index, values)
    sizes = torch.bincount(index, minlength=num_groups)
    return totals[index], sizes[index]

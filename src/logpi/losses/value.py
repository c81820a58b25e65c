"""Losses of a value function."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def squared_error(values: Float[Tensor, "*shape"], value_targets: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½ (V − target)² per state, [batch, time]."""
    return 0.5 * (values - value_targets) ** 2

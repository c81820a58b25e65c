"""Losses of a value function."""

from __future__ import annotations

from torch import Tensor


def squared_error(values: Tensor, value_targets: Tensor) -> Tensor:
    """½ (V − target)² per state, [batch, time]."""
    return 0.5 * (values - value_targets) ** 2

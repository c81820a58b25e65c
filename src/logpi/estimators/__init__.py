"""Rewards to advantages: pure functions of tensors.

All share a signature: `(rewards, mask, group, values, final_values, *, options) -> advantages`, shapes [batch, time],
[batch, time] bool, [batch], [batch, time] or None, [batch] or None. Advantages come back detached, [batch, time], zero
on padding.
"""

from logpi.estimators.generalised_advantage import generalised_advantage
from logpi.estimators.group import group_standardised, leave_one_out
from logpi.estimators.monte_carlo import reward_to_go, reward_to_go_leave_one_out, total_reward

__all__ = [
    "generalised_advantage",
    "group_standardised",
    "leave_one_out",
    "reward_to_go",
    "reward_to_go_leave_one_out",
    "total_reward",
]

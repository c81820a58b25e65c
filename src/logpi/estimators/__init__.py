"""Rewards to advantages: pure functions of tensors.

All share a signature: `(rewards, mask, group, values, final_values, *, data, options) -> advantages`, shapes
[batch, time], [batch, time] bool, [batch], [batch, time] or None, [batch] or None. Advantages come back detached,
[batch, time], zero on padding. `data` are keyword arguments without a default, by their names: `actions`, `log_probs`
(as sampled), `log_ratios` (log π − log of the policy that sampled), `given` (bool: whether the task's solution, not the
policy, chose an action) and `turns` (the index of an action's turn), [batch, time] each.
"""

from logpi.estimators.baseline import reward_minus_baseline
from logpi.estimators.by_turn import generalised_advantage_by_turn, turn_targets
from logpi.estimators.generalised_advantage import generalised_advantage, n_step_advantage
from logpi.estimators.group import (
    batch_standardised,
    group_centred,
    group_centred_batch_standardised,
    group_standardised,
    leave_one_out,
    length_weighted_leave_one_out,
    relative_to_mean,
)
from logpi.estimators.minimum_risk import minimum_risk
from logpi.estimators.mixed_likelihood import mixed_likelihood
from logpi.estimators.monte_carlo import own_reward, reward_to_go, reward_to_go_leave_one_out, total_reward
from logpi.estimators.v_trace import v_trace, v_trace_targets

__all__ = [
    "batch_standardised",
    "generalised_advantage",
    "generalised_advantage_by_turn",
    "group_centred",
    "group_centred_batch_standardised",
    "group_standardised",
    "leave_one_out",
    "length_weighted_leave_one_out",
    "minimum_risk",
    "mixed_likelihood",
    "n_step_advantage",
    "own_reward",
    "relative_to_mean",
    "reward_minus_baseline",
    "reward_to_go",
    "reward_to_go_leave_one_out",
    "total_reward",
    "turn_targets",
    "v_trace",
    "v_trace_targets",
]

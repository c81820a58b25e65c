"""The nouns that flow through a step: Trajectory (one episode or completion) and Batch (several, padded).

One alignment everywhere: index t of log-probs, rewards, advantages and mask belongs to action t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

OWN = -1  # in a language model's inputs: here stands one of its own tokens, the next of the actions


@dataclass(frozen=True)
class Trajectory:
    """One completion of a prompt, or one episode of an environment, as it was sampled.

    `inputs` is what only the policy understands: the prompt's token ids [prompt_time] for a causal LM, the observations
    [time + 1, features] (the last one is where the episode stopped) for a control policy. In an episode of several
    turns a causal LM's inputs go on behind the prompt, OWN where one of the actions stands; actions that are left come
    last. So whatever is not the policy's own is no action: no mask, loss, KL, entropy, length or reward has it.
    `terminated`: the policy or the environment ended it (an EOS token is an action of the trajectory).
    `truncated`: a limit cut it; another outcome than the same actions ended.
    """

    prompt_uid: int
    sample: int  # index within its group
    group: int  # trajectories of one group share a prompt (or a start-state distribution)
    policy_version: int
    actions: Tensor  # [time]
    behavior_log_probs: Tensor  # [time], as sampled
    entropies: Tensor  # [time], of the policy's distribution where each action was drawn
    inputs: Any
    terminated: bool
    truncated: bool
    rewards: Tensor | None = None  # [time], None until scored, and where no reward function gave a number
    rewards_by_name: Mapping[str, float | None] = field(default_factory=dict)  # what each reward function gave
    is_baseline: bool = False  # its group's likeliest completion: compared with, not trained on
    failure: str | None = None  # why it can't be trained on
    policy_log_probs: Tensor | None = None  # [time], of the policy where exploration drew from another one
    num_given: int = 0  # leading actions that are the task's solution's: not drawn, their log-probs recorded as 0
    weight: float = 1.0  # of its prompt: how seldom it was to come, over how often it does

    def __len__(self) -> int:
        return self.actions.shape[0]


@dataclass(frozen=True)
class Batch:
    """Trajectories padded on the right to [batch, time]; `mask` is true on real actions.

    Padding holds zeros. Everything after `inputs` is filled in by a later stage of the step, under a name of its own.
    """

    actions: Tensor  # [batch, time]
    mask: Tensor  # [batch, time] bool
    prompt_uid: Tensor  # [batch]
    sample: Tensor  # [batch]
    group: Tensor  # [batch]
    truncated: Tensor  # [batch] bool
    rewards: Tensor  # [batch, time]
    behavior_log_probs: Tensor  # [batch, time], as sampled
    policy_log_probs: Tensor  # [batch, time], of the policy then; as sampled but with exploration
    inputs: tuple[Any, ...]
    given: Tensor  # [batch, time] bool, true where the task's solution chose the action
    weights: Tensor  # [batch], of the prompts
    values: Tensor | None = None  # [batch, time], V before each action, detached
    final_values: Tensor | None = None  # [batch], V where a truncated trajectory stopped, 0 where it terminated
    reference_log_probs: Tensor | None = None  # [batch, time], frozen policy
    reference_states: Tensor | None = None  # [batch, time, width], what its distributions are computed from
    kl_exact: Tensor | None = None  # [batch, time], KL(π‖π_ref) before each action, detached
    advantages: Tensor | None = None  # [batch, time], detached
    value_targets: Tensor | None = None  # [batch, time], detached
    importance_weights: Tensor | None = None  # [batch, time], π/μ, detached; None: 1
    old_log_probs: Tensor | None = None  # [batch, time], before this update; None: the update is the first
    token_weights: Tensor | None = None  # [batch, time], what each action counts in the loss

    def __len__(self) -> int:
        return self.actions.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Number of actions of each trajectory, [batch]."""
        return self.mask.sum(1)

    def select(self, rows: Tensor) -> Batch:
        """Return the rows with these indices, time trimmed to the longest of them."""
        time = max(1, int(self.lengths[rows].max())) if len(rows) else 1
        changes: dict[str, Any] = {"inputs": tuple(self.inputs[i] for i in rows.tolist())}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changes[name] = value[rows][:, :time] if value.ndim >= 2 else value[rows]
        return replace(self, **changes)


def turns_of(batch: Batch) -> Tensor:
    """Return the index of each action's turn, [batch, time]: actions of a language model between which nobody else said
    anything are one turn, every action of a control policy is one. Padding goes on with the last turn."""
    turns = torch.zeros_like(batch.actions)
    for row, inputs in zip(turns, batch.inputs, strict=True):
        if inputs.ndim > 1:
            row[:] = torch.arange(len(row))
            continue
        own = (inputs == OWN).nonzero()[:, 0]
        if not len(own):
            continue  # nobody else said anything
        left = torch.arange(len(inputs), len(inputs) + len(row) - len(own))
        starts = 1 + (torch.cat([own, left]).diff() > 1).nonzero()[:, 0]  # what others said stands before these
        row[starts] = 1
    return turns if batch.inputs[0].ndim > 1 else turns.cumsum(1)


def num_shared(inputs: Tensor) -> int:
    """Return how many tokens stand before the first action: the prompt, which the trajectories of a group share."""
    if inputs.ndim > 1:
        return 0  # observations, one an action
    own = (inputs == OWN).nonzero()[:, 0].tolist()
    return own[0] if own else len(inputs)


def pad(sequences: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Stack sequences [time_i, ...] into [batch, length, ...], zeros on the right."""
    length = length or max(len(s) for s in sequences)
    out = sequences[0].new_zeros((len(sequences), length, *sequences[0].shape[1:]))
    for row, sequence in zip(out, sequences, strict=True):
        row[: len(sequence)] = sequence
    return out


def make_batch(trajectories: Sequence[Trajectory]) -> Batch:
    """Pad scored trajectories into one batch, in the order given. The reward of a group's baseline, where there is one,
    becomes the `values` of the others."""
    baselines = {t.group: float(t.rewards.sum()) for t in trajectories if t.is_baseline and t.rewards is not None}
    trajectories = [t for t in trajectories if not t.is_baseline]
    rewards = [t.rewards for t in trajectories if t.rewards is not None]
    if len(rewards) != len(trajectories):
        raise ValueError("make_batch needs rewards on every trajectory: score them first")
    lengths = torch.tensor([len(t) for t in trajectories])
    time = max(1, int(lengths.max()))
    mask = torch.arange(time) < lengths[:, None]
    known = torch.tensor([baselines.get(t.group, 0.0) for t in trajectories], dtype=torch.float64)
    return Batch(
        actions=pad([t.actions for t in trajectories], time),
        mask=mask,
        prompt_uid=torch.tensor([t.prompt_uid for t in trajectories]),
        sample=torch.tensor([t.sample for t in trajectories]),
        group=torch.tensor([t.group for t in trajectories]),
        truncated=torch.tensor([t.truncated for t in trajectories]),
        rewards=pad(rewards, time),
        behavior_log_probs=pad([t.behavior_log_probs for t in trajectories], time),
        policy_log_probs=pad(
            [t.behavior_log_probs if t.policy_log_probs is None else t.policy_log_probs for t in trajectories], time
        ),
        inputs=tuple(t.inputs for t in trajectories),
        given=torch.arange(time) < torch.tensor([t.num_given for t in trajectories])[:, None],
        weights=torch.tensor([t.weight for t in trajectories], dtype=torch.float64),
        values=known[:, None] * mask if baselines else None,
    )

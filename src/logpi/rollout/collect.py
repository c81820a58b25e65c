"""Whole episodes of a control environment, all of them side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from logpi.environments.gym import GymEnvironment
from logpi.errors import InputError, NonFiniteError
from logpi.policies.mlp import MLP
from logpi.policies.token_log_probs import pad_rows
from logpi.randomness import Stream, integer_seed, uniforms
from logpi.rollout.sampling import draw, with_exploration
from logpi.trajectory import Trajectory

# Positions whose uniform numbers are computed at once: Philox costs nearly the same for 1 as for 64.
POSITIONS_AT_ONCE = 64


@torch.no_grad()
def collect(
    policy: MLP,
    environment: GymEnvironment,
    *,
    num_episodes: int,
    seed: int,
    stream: Stream = Stream.ROLLOUT,
    environment_stream: Stream = Stream.ENVIRONMENT,
    step: int = 0,
    policy_version: int = 0,
    deterministic: bool = False,
    max_steps: int | None = None,
    exploration_epsilon: float = 0.0,
) -> list[Trajectory]:
    """Run `num_episodes` fresh episodes to their ends; episode i is sample i of one group.

    Actions are drawn by (seed, stream, step, episode, position), or are the likeliest ones when `deterministic`; start
    states by (seed, environment_stream, step). `max_steps` truncates like the environment's own limit. With
    `exploration_epsilon` they are drawn from a mixture with the uniform distribution, and recorded with its log-prob.
    """
    limit = min(n for n in (environment.max_episode_steps, max_steps, np.inf) if n is not None)
    if limit == np.inf:
        raise InputError(f'environment "{environment.name}" has no limit on its episodes; set max_episode_steps')
    observed = environment.reset(num_episodes, integer_seed(seed, environment_stream, step))
    numbers = _uniforms(seed, stream, step, num_episodes)
    observations, log_probs, actions, rewards, terminated, truncated = [observed], [], [], [], [], []
    running = np.ones(num_episodes, dtype=bool)
    while running.any() and len(actions) < limit:
        log_probs.append(policy.action_log_probs(pad_rows(torch.from_numpy(observed)))[:num_episodes])
        drawn_from = with_exploration(log_probs[-1], exploration_epsilon) if exploration_epsilon else log_probs[-1]
        actions.append(log_probs[-1].argmax(-1) if deterministic else draw(drawn_from.exp(), next(numbers)))
        observed, reward, has_terminated, was_truncated = environment.step(actions[-1].numpy())
        observations.append(observed)
        rewards.append(reward)
        terminated.append(has_terminated)
        truncated.append(was_truncated)
        running &= ~(has_terminated | was_truncated)
    return _cut(
        torch.from_numpy(np.stack(observations, 1)),
        torch.stack(log_probs, 1),
        torch.stack(actions, 1),
        torch.from_numpy(np.stack(rewards, 1)).to(torch.float32),
        np.stack(terminated, 1),
        np.stack(truncated, 1),
        policy_version,
        exploration_epsilon,
    )


def evaluate_returns(
    policy: MLP, environment: GymEnvironment, *, seed: int, num_episodes: int = 100, deterministic: bool = False
) -> list[float]:
    """Return the undiscounted returns of `num_episodes` episodes, the same starts and draws at every call."""
    trajectories = collect(
        policy,
        environment,
        num_episodes=num_episodes,
        seed=seed,
        stream=Stream.EVALUATION,
        environment_stream=Stream.EVALUATION_ENVIRONMENT,
        deterministic=deterministic,
    )
    return [float(t.rewards.sum()) for t in trajectories if t.rewards is not None]


def _uniforms(seed: int, stream: Stream, step: int, num_episodes: int) -> Iterator[np.ndarray]:
    """Yield the uniform numbers [episodes] of position 0, 1, 2, ..."""
    start = 0
    while True:
        positions = np.arange(start, start + POSITIONS_AT_ONCE)[:, None]
        yield from uniforms(seed, stream, step, 0, np.arange(num_episodes), positions)
        start += POSITIONS_AT_ONCE


def _cut(
    observations: Tensor,
    log_probs: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminated: np.ndarray,
    truncated: np.ndarray,
    policy_version: int,
    exploration_epsilon: float,
) -> list[Trajectory]:
    """Cut [episodes, steps, ...] into episodes at their first ends; what came after belongs to none."""
    ended = terminated | truncated
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, ended.shape[1])
    has_terminated = terminated[np.arange(len(lengths)), lengths - 1]
    chosen = log_probs.gather(-1, actions[..., None])[..., 0]
    behavior = chosen
    if exploration_epsilon:
        behavior = with_exploration(log_probs, exploration_epsilon).gather(-1, actions[..., None])[..., 0]
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    trajectories = [
        Trajectory(
            prompt_uid=0,
            sample=i,
            group=0,
            policy_version=policy_version,
            actions=actions[i, :length],
            behavior_log_probs=behavior[i, :length],
            policy_log_probs=chosen[i, :length] if exploration_epsilon else None,
            entropies=entropies[i, :length],
            inputs=observations[i, : length + 1],
            terminated=bool(has_terminated[i]),
            truncated=not has_terminated[i],
            rewards=rewards[i, :length],
        )
        for i, length in enumerate(lengths.tolist())
    ]
    for t in trajectories:
        if bool(torch.isnan(t.behavior_log_probs).any()):
            raise NonFiniteError(f"a log-probability in episode {t.sample} is NaN: look for NaN in the weights")
    return trajectories

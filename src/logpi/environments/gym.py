"""Gymnasium environments, many side by side.

The edge at which a run can be cut lies between rollouts: each starts with fresh episodes from a keyed seed, so nothing
of an environment is ever saved. Every episode has a sub-environment of its own. Gymnasium restarts it one step after
its episode ended; what it says from then on belongs to no episode.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv

from logpi.errors import InputError, did_you_mean


class GymEnvironment:
    """Episodes of a registered Gymnasium environment with observation vectors and finitely many actions.

    `max_episode_steps` overrides the environment's own limit, behind which episodes are truncated. `options` go to the
    environment's constructor.
    """

    def __init__(self, name: str = "CartPole-v1", max_episode_steps: int | None = None, **options: Any):
        if ":" not in name and name not in gymnasium.registry:
            raise InputError(f'unknown environment "{name}".{did_you_mean(name, gymnasium.registry)}')
        self.name = name
        limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        self._options: dict[str, Any] = options | limit
        self._vector = self._make(1)
        spec = self._vector.spec
        self.max_episode_steps: int | None = max_episode_steps or (spec.max_episode_steps if spec else None)
        self.num_features = _vector_size(name, self._vector.single_observation_space)
        self.num_actions, self._first_action = _action_range(name, self._vector.single_action_space)

    def reset(self, num_episodes: int, seed: int) -> np.ndarray:
        """Start this many episodes, a function of (num_episodes, seed); return observations [episodes, features].

        Where Gymnasium has no vectorised implementation of its own, episode i starts from seed + i.
        """
        if self._vector.num_envs != num_episodes:
            self._vector.close()
            self._vector = self._make(num_episodes)
        return self._vector.reset(seed=seed)[0].astype(np.float32)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Act once in every episode; return (observations [episodes, features], rewards, terminated, truncated)."""
        observations, rewards, terminated, truncated, _ = self._vector.step(actions + self._first_action)
        return observations.astype(np.float32), rewards, terminated, truncated

    def _make(self, num_envs: int) -> VectorEnv:
        """Return Gymnasium's vectorised implementation where there is one, else copies stepped one after the other."""
        try:
            mode, arguments = "vector_entry_point", self._options
            if gymnasium.spec(self.name).vector_entry_point is None:
                mode, restart = "sync", {"autoreset_mode": AutoresetMode.NEXT_STEP}
                arguments = {"vector_kwargs": restart, "disable_env_checker": True, **self._options}
            vector = gymnasium.make_vec(self.name, num_envs, vectorization_mode=mode, **arguments)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise InputError(f'environment "{self.name}" cannot be made: {error}') from error
        if vector.metadata.get("autoreset_mode") is not AutoresetMode.NEXT_STEP:
            raise InputError(f'environment "{self.name}" does not say that it restarts episodes at the next step')
        return vector


def _vector_size(name: str, space: Space) -> int:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise InputError(f'environment "{name}" observes {space}; only vectors, Box(n,), are supported')
    return space.shape[0]


def _action_range(name: str, space: Space) -> tuple[int, int]:
    if not isinstance(space, Discrete):
        raise InputError(f'environment "{name}" takes actions from {space}; only Discrete(n) is supported')
    return int(space.n), int(space.start)

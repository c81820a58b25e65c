"""Our advantages against Stable-Baselines3's, on vectorised environments that terminate, truncate and reset.

SB3 keeps one row per environment, with episodes behind one another; we keep one row per episode. Where an episode was
truncated SB3 adds γ·V(last observation) to its last reward and counts it as ended, which is our `final_values`; where
the buffer is full it bootstraps with `last_values`, which is `final_values` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logpi.estimators import generalised_advantage, n_step_advantage
from logpi.trajectory import pad

sb3 = pytest.importorskip("stable_baselines3")
import gymnasium as gym  # noqa: E402
from stable_baselines3.common.buffers import RolloutBuffer  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

GAMMA, LAMBDA = 0.97, 0.9


@dataclass(frozen=True)
class Rollout:
    """What a vectorised environment gave: [time, environments] each; rewards as they came, without a bootstrap."""

    rewards: np.ndarray
    values: np.ndarray
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool
    cut_values: np.ndarray  # V of the observation where an episode was truncated; not read elsewhere
    last_values: np.ndarray  # [environments], V after the last step

    @property
    def done(self) -> np.ndarray:
        return self.terminated | self.truncated

    def window(self, start: int, stop: int) -> Rollout:
        """Return steps start to stop, as a buffer of that size would have seen them."""
        last = self.values[stop] if stop < len(self.values) else self.last_values
        steps = {name: array[start:stop] for name, array in vars(self).items() if name != "last_values"}
        return Rollout(**steps, last_values=last)


def random_rollout(seed: int, time: int, num_environments: int) -> Rollout:
    """Return random rewards and values, with ends of both kinds in every fourth step or so and at the last one."""
    draws = np.random.default_rng(seed)
    end = draws.random((time, num_environments))
    end[-1, :3] = 0.0, 1.0, 0.5
    return Rollout(
        rewards=draws.normal(size=(time, num_environments)),
        values=draws.normal(size=(time, num_environments)),
        terminated=end < 0.12,
        truncated=end > 0.88,
        cut_values=draws.normal(size=(time, num_environments)),
        last_values=draws.normal(size=num_environments),
    )


def judge(rollout: Rollout, gae_lambda: float) -> np.ndarray:
    """Return SB3's advantages [time, environments], in float64."""
    time, num_environments = rollout.rewards.shape
    space = gym.spaces.Discrete(2)
    buffer = RolloutBuffer(time, space, space, "cpu", gae_lambda=gae_lambda, gamma=GAMMA, n_envs=num_environments)
    bootstrap = GAMMA * rollout.cut_values * (rollout.truncated & ~rollout.terminated)
    # its own arrays are float32, and γ times one of them rounds to it
    buffer.rewards, buffer.values = rollout.rewards + bootstrap, rollout.values
    buffer.episode_starts = np.concatenate([np.ones((1, num_environments)), rollout.done[:-1]])
    buffer.advantages = np.zeros_like(rollout.rewards)
    buffer.compute_returns_and_advantage(torch.from_numpy(rollout.last_values), rollout.done[-1])
    return buffer.advantages


def episodes(rollout: Rollout) -> tuple[dict[str, Tensor], list[tuple[int, slice]]]:
    """Return our estimators' arguments, a row an episode, and where each row lies: (environment, steps)."""
    places = []
    for environment, ends in enumerate(rollout.done.T):
        edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(ends)]
        places += [(environment, slice(a, b)) for a, b in pairwise(edges) if a < b]
    final = []
    for environment, steps in places:
        last = (steps.stop - 1, environment)
        cut = rollout.cut_values[last] if rollout.truncated[last] else rollout.last_values[environment]
        final.append(0.0 if rollout.terminated[last] else float(cut))
    columns = {
        name: pad([torch.from_numpy(array[steps, environment].copy()) for environment, steps in places])
        for name, array in (("rewards", rollout.rewards), ("values", rollout.values))
    }
    lengths = torch.tensor([steps.stop - steps.start for _, steps in places])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    final_values = torch.tensor(final, dtype=columns["values"].dtype)
    return {**columns, "mask": mask, "group": torch.arange(len(places)), "final_values": final_values}, places


def back(rows: Tensor, places: list[tuple[int, slice]], like: np.ndarray) -> np.ndarray:
    """Put our rows back to [time, environments]; padding must be 0."""
    out = np.full(like.shape, np.nan, like.dtype)
    for row, (environment, steps) in zip(rows.numpy(), places, strict=True):
        length = steps.stop - steps.start
        assert not row[length:].any()
        out[steps, environment] = row[:length]
    return out


@pytest.mark.parametrize("gae_lambda", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_generalised_advantage_is_sb3s(seed: int, gae_lambda: float) -> None:
    rollout = random_rollout(seed, 40, 6)
    arguments, places = episodes(rollout)
    found = back(generalised_advantage(**arguments, gamma=GAMMA, gae_lambda=gae_lambda), places, rollout.rewards)
    assert np.abs(found - judge(rollout, gae_lambda)).max() <= 1e-12


@pytest.mark.parametrize("n_steps", [1, 5, 64])
@pytest.mark.parametrize("seed", range(3))
def test_n_step_advantage_is_that_of_sb3s_a2c(seed: int, n_steps: int) -> None:
    """SB3's A2C looks to the end of its buffer (λ = 1), so the first step of a buffer of n has the n-step advantage."""
    rollout = random_rollout(seed, 40, 6)
    arguments, places = episodes(rollout)
    found = back(n_step_advantage(**arguments, gamma=GAMMA, n_steps=n_steps), places, rollout.rewards)
    starts = range(len(rollout.rewards))
    expected = np.stack([judge(rollout.window(t, min(t + n_steps, len(starts))), 1.0)[0] for t in starts])
    assert np.abs(found - expected).max() <= 1e-12


# --- SB3 collects by itself ----------------------------------------------------------------------------------------


class Walk(gym.Env):
    """A random walk on −3 … 3 with rewards of any size: ends at the borders, or is cut by gymnasium's time limit."""

    observation_space = gym.spaces.Box(-3.0, 3.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.time = 0.0, 0.0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += 2.0 * action - 1.0
        self.time += 0.3
        return self._observation(), float(self.np_random.normal()), abs(self.place) >= 3, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.time], np.float32)


class Recorder(BaseCallback):
    """Keeps what the environments gave, before SB3 adds a bootstrap to the rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[np.ndarray, np.ndarray, list[dict]]] = []

    def _on_step(self) -> bool:
        self.steps.append((self.locals["rewards"].copy(), self.locals["dones"].copy(), self.locals["infos"]))
        return True


@pytest.mark.parametrize(("kind", "gae_lambda"), [("PPO", LAMBDA), ("A2C", 1.0)])
def test_advantages_are_those_of_a_rollout_that_sb3_collected(kind: str, gae_lambda: float) -> None:
    """SB3's whole path in float32: its vectorised environments, its value network, its bootstrap at truncations."""
    time, num_environments = 32, 4
    environments = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Walk(), 6) for _ in range(num_environments)])
    make = {"PPO": sb3.PPO, "A2C": sb3.A2C}[kind]
    model = make("MlpPolicy", environments, n_steps=time, gamma=GAMMA, gae_lambda=gae_lambda, seed=0, device="cpu")
    recorder = Recorder()
    model._setup_learn(num_environments * time, recorder)
    recorder.init_callback(model)
    buffer = model.rollout_buffer
    assert model.collect_rollouts(environments, recorder, buffer, time)

    def value(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.policy.predict_values(torch.from_numpy(observations))[:, 0].numpy()

    done = np.stack([dones for _, dones, _ in recorder.steps]).astype(bool)
    truncated = np.array([[i.get("TimeLimit.truncated", False) for i in infos] for _, _, infos in recorder.steps])
    cut_values = np.zeros_like(buffer.values)
    for t, environment in zip(*np.nonzero(truncated)):
        cut_values[t, environment] = value(recorder.steps[t][2][environment]["terminal_observation"][None])[0]
    rewards = np.stack([rewards for rewards, _, _ in recorder.steps]).astype(np.float32)
    rollout = Rollout(rewards, buffer.values, done & ~truncated, truncated, cut_values, value(model._last_obs))
    assert rollout.terminated.any() and rollout.truncated.any() and not done[-1].all()

    arguments, places = episodes(rollout)
    found = back(generalised_advantage(**arguments, gamma=GAMMA, gae_lambda=gae_lambda), places, rewards)
    scale = np.abs(buffer.advantages).max()
    print(f"{kind}: {np.abs(found - buffer.advantages).max() / scale:.1e}")
    assert np.abs(found - buffer.advantages).max() <= 1e-6 * scale
    if kind == "A2C":
        found = back(n_step_advantage(**arguments, gamma=GAMMA, n_steps=time), places, rewards)
        assert np.abs(found - buffer.advantages).max() <= 1e-6 * scale

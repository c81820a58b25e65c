"""Stable-Baselines3's side of `cartpole.py`: PPO or A2C with the settings of its own zoo for CartPole-v1."""

from __future__ import annotations

import json
import sys
import time

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

EPISODES, TARGET, CHECKS, EVERY, LIMIT = 100, 475.0, 3, 2048, 500_000
name, seed, started = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)


def returns(model, deterministic: bool) -> float:
    """Return the mean return of 100 episodes at fixed seeds, side by side."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES, vectorization_mode="vector_entry_point")
    observed, _ = envs.reset(seed=12345)
    totals, running = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while running.any():
        actions, _ = model.predict(observed, deterministic=deterministic)
        observed, rewards, terminated, truncated, _ = envs.step(actions)
        totals += running * rewards
        running &= ~(terminated | truncated)
    return float(totals.mean())


class Checks(BaseCallback):
    """Evaluate each 2048 environment steps, off the clock; stop when three in a row hold."""

    def __init__(self):
        super().__init__()
        self.next, self.held, self.evaluating, self.passed = EVERY, 0, 0.0, None

    def _on_step(self) -> bool:
        if self.num_timesteps < self.next:
            return True
        self.next += EVERY
        at, start = time.time() - started - self.evaluating, time.time()
        score = min(returns(self.model, True), returns(self.model, False))
        self.evaluating += time.time() - start
        self.held = self.held + 1 if score >= TARGET else 0
        if self.held == CHECKS:
            self.passed = at
        return self.passed is None


if name == "ppo":
    envs = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    model = PPO(
        "MlpPolicy", envs, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
        learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, seed=seed, device="cpu",
    )  # fmt: skip
    steps = 100_000
else:
    envs = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    model = A2C("MlpPolicy", envs, ent_coef=0.0, seed=seed, device="cpu")
    steps = LIMIT
checks = Checks()
model.learn(steps, callback=checks)
print(json.dumps({"seconds": checks.passed, "steps": model.num_timesteps, "evaluating": checks.evaluating}))

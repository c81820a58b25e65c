"""The experience of a control environment: whole episodes, an MLP acting."""

from __future__ import annotations

from typing import Any

from logpi.evaluation import Evaluation, estimate
from logpi.randomness import Stream
from logpi.rollout.collect import collect, evaluate_returns
from logpi.trajectory import Trajectory


class EnvironmentExperience:
    """Episodes of a Gymnasium environment; its rewards come with the steps."""

    draws = True
    order = None

    def __init__(
        self,
        policy: Any,
        environment: Any,
        *,
        seed: int,
        num_generations: int,
        num_eval_episodes: int,
        exploration_epsilon: float = 0.0,
    ):
        self.policy, self.environment, self.seed = policy, environment, seed
        self.num_generations, self.num_eval_episodes = num_generations, num_eval_episodes
        self.exploration_epsilon = exploration_epsilon

    def sample(self, step: int, policy_version: int, places: range) -> list[Trajectory]:
        return collect(
            self.policy,
            self.environment,
            num_episodes=self.num_generations,
            seed=self.seed,
            stream=Stream.ROLLOUT,
            environment_stream=Stream.ENVIRONMENT,
            step=step,
            policy_version=policy_version,
            exploration_epsilon=self.exploration_epsilon,
        )

    def plan(self, step: int) -> list[int]:
        return [0]

    def reward(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        return trajectories

    def evaluate(self, step: int, *, full: bool = False) -> Evaluation:
        """Mean return at fixed seeds, sampled and with the likeliest actions; the score is the lower one."""
        metrics = {}
        for name, deterministic in (("deterministic", True), ("stochastic", False)):
            returns = evaluate_returns(
                self.policy,
                self.environment,
                seed=0,
                num_episodes=self.num_eval_episodes,
                deterministic=deterministic,
            )
            metrics[name] = estimate(returns)
        worst = min(metrics.values(), key=lambda m: m.score)
        return Evaluation(worst.score, worst.low, worst.high, worst.n, metrics)

    def before_and_after(self, record: Any) -> list[dict[str, Any]]:
        """Episodes are numbers, not texts: nothing to show."""
        return []

    def show(self, trajectory: Trajectory) -> dict[str, Any]:
        return {
            "prompt_uid": trajectory.prompt_uid,
            "sample": trajectory.sample,
            "steps": len(trajectory),
            "reward": None if trajectory.rewards is None else float(trajectory.rewards.sum()),
            "terminated": trajectory.terminated,
        }

"""Episodes against a fresh single Gymnasium environment, their ends, their keys and their draws."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch

import logpi
from logpi import api, build
from logpi.batching import micro_batches
from logpi.environments import GymEnvironment
from logpi.errors import InputError, NonFiniteError
from logpi.policies.mlp import MLP
from logpi.randomness import Stream
from logpi.rollout.collect import collect, evaluate_returns
from logpi.trajectory import Trajectory, make_batch


class Balancer:
    """A hand-written policy that balances CartPole for ever: push towards the side the pole falls to."""

    def action_log_probs(self, observations: torch.Tensor) -> torch.Tensor:
        push = observations @ torch.tensor([0.15, 0.9, 15.0, 4.5])
        return torch.log_softmax(torch.stack([-push, push], -1), -1)


class Fixed:
    """The same distribution over actions everywhere."""

    def __init__(self, *probabilities: float):
        self.log_probs = torch.tensor(probabilities).log()

    def action_log_probs(self, observations: torch.Tensor) -> torch.Tensor:
        return self.log_probs.expand(len(observations), -1)


def same(one: list[Trajectory], other: list[Trajectory]) -> bool:
    names = ("actions", "inputs", "rewards", "behavior_log_probs", "entropies")
    return len(one) == len(other) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in names
    )


def replay(trajectory: Trajectory, **options) -> None:
    """Repeat the trajectory's actions in a single CartPole; every transition must agree.

    It is put where the trajectory was before each: an unstable pole magnifies the float32 rounding of its start.
    """
    single = gymnasium.make("CartPole-v1", **options)
    single.reset(seed=0)
    for t, action in enumerate(trajectory.actions.tolist()):
        single.unwrapped.state = trajectory.inputs[t].numpy().astype(np.float64)
        observation, reward, terminated, truncated, _ = single.step(action)
        np.testing.assert_allclose(observation, trajectory.inputs[t + 1].numpy(), atol=1e-6)
        assert reward == trajectory.rewards[t]
        assert (terminated or truncated) == (t == len(trajectory) - 1)
    assert (trajectory.terminated, trajectory.truncated) == (terminated, truncated and not terminated)


@pytest.mark.parametrize("limit", [None, 20])
def test_episodes_are_those_of_a_single_environment(limit):
    environment = GymEnvironment(max_episode_steps=limit)
    trajectories = collect(MLP(4, 2), environment, num_episodes=12, seed=3)
    for trajectory in trajectories:
        assert trajectory.inputs.shape == (len(trajectory) + 1, 4)
        assert trajectory.inputs.dtype == trajectory.rewards.dtype == torch.float32
        replay(trajectory, **({} if limit is None else {"max_episode_steps": limit}))
    assert len({t.truncated for t in trajectories}) == (1 if limit is None else 2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_time_limit_truncates(deterministic):
    trajectories = collect(Balancer(), GymEnvironment(), num_episodes=5, seed=0, deterministic=deterministic)
    assert [len(t) for t in trajectories] == [500] * 5
    assert all(t.truncated and not t.terminated for t in trajectories)
    replay(trajectories[0])


def test_max_steps_cuts_and_nothing_else_changes():
    policy, environment = MLP(4, 2), GymEnvironment()
    whole = collect(policy, environment, num_episodes=9, seed=1)
    cut = collect(policy, environment, num_episodes=9, seed=1, max_steps=15)
    for long, short in zip(whole, cut, strict=True):
        assert len(short) == min(15, len(long))
        assert torch.equal(long.inputs[: len(short) + 1], short.inputs)
        assert short.truncated == (len(long) > 15) and short.terminated != short.truncated


def test_an_end_at_the_limit_is_a_termination():
    (whole,) = collect(MLP(4, 2), GymEnvironment(), num_episodes=1, seed=5)
    (limited,) = collect(MLP(4, 2), GymEnvironment(max_episode_steps=len(whole)), num_episodes=1, seed=5)
    assert limited.terminated and not limited.truncated


def test_same_key_same_episodes():
    policy, environment = MLP(4, 2, seed=2), GymEnvironment()
    first = collect(policy, environment, num_episodes=6, seed=1, step=4)
    collect(policy, environment, num_episodes=3, seed=8)  # leaves nothing behind
    assert same(first, collect(policy, environment, num_episodes=6, seed=1, step=4))
    assert same(first, collect(policy, GymEnvironment(), num_episodes=6, seed=1, step=4))
    for other in ({"seed": 1, "step": 5}, {"seed": 2, "step": 4}):
        changed = collect(policy, environment, num_episodes=6, **other)
        assert not any(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, changed, strict=True))
    drawn_anew = collect(policy, environment, num_episodes=6, seed=1, step=4, stream=Stream.PROBE)
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, drawn_anew, strict=True))
    assert not same(first, drawn_anew)


def test_an_episode_does_not_depend_on_how_many_run_beside_it():
    policy, environment = MLP(2, 3), GymEnvironment("MountainCar-v0", max_episode_steps=40)
    many = collect(policy, environment, num_episodes=10, seed=0)
    assert same(many[:3], collect(policy, environment, num_episodes=3, seed=0))


@pytest.mark.parametrize("num_episodes", [1, 5, 16])
def test_recorded_log_probs_are_those_of_evaluate(num_episodes):
    policy, environment = MLP(4, 2, seed=7), GymEnvironment()
    batch = make_batch(trajectories := collect(policy, environment, num_episodes=num_episodes, seed=0))
    out = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs, with_entropy=True)
    torch.testing.assert_close(out.log_probs.detach(), batch.behavior_log_probs, rtol=0, atol=1e-6)
    for i, trajectory in enumerate(trajectories):
        torch.testing.assert_close(out.entropies[i, : len(trajectory)], trajectory.entropies, rtol=0, atol=1e-6)


def test_draws_follow_the_policy():
    environment = GymEnvironment("MountainCar-v0", max_episode_steps=150)
    probabilities = np.array([0.2, 0.5, 0.3])
    trajectories = collect(Fixed(*probabilities), environment, num_episodes=40, seed=0)
    actions = torch.cat([t.actions for t in trajectories])
    expected = probabilities * len(actions)
    chi_squared = ((np.bincount(actions, minlength=3) - expected) ** 2 / expected).sum()
    assert chi_squared < 13.8  # 0.999 quantile, 2 degrees of freedom
    # neighbours in time and neighbouring episodes are independent too (4 degrees of freedom)
    table = torch.stack([t.actions for t in trajectories])
    for a, b in ((table[:, 1:], table[:, :-1]), (table[1:], table[:-1])):
        pairs = np.bincount((3 * a + b).flatten(), minlength=9)
        expected = np.outer(probabilities, probabilities).flatten() * a.numel()
        assert ((pairs - expected) ** 2 / expected).sum() < 26.1  # 0.999 quantile, 8 degrees of freedom


def test_exploration_draws_from_the_mixture_and_records_it():
    environment = GymEnvironment("MountainCar-v0", max_episode_steps=150)
    pi, epsilon = torch.tensor([0.2, 0.5, 0.3]), 0.4
    mixture = 0.6 * pi + 0.4 / 3
    found = collect(Fixed(*pi.tolist()), environment, num_episodes=40, seed=0, exploration_epsilon=epsilon)
    actions = torch.cat([t.actions for t in found])
    expected = mixture * len(actions)
    assert float(((torch.bincount(actions, minlength=3) - expected) ** 2 / expected).sum()) < 13.8
    batch = make_batch(found)
    torch.testing.assert_close(batch.behavior_log_probs, mixture.log()[batch.actions])
    torch.testing.assert_close(batch.policy_log_probs, pi.log()[batch.actions])


def test_a_run_that_explores_weighs_its_samples_and_still_compares_its_own_log_probs(tmp_path):
    folder = tmp_path / "run"
    algorithm = {"name": "reinforce", "importance": "sequence", "gamma": None, "gae_lambda": None}
    logpi.train("cartpole", run=folder, max_steps=2, rollout={"exploration_epsilon": 0.3, "num_generations": 4},
                algorithm=algorithm, evaluation={"num_episodes": 2})  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["mismatch/max"] < 1e-5 and row["grad_norm"] > 0 for row in rows)
    assert json.loads((folder / "run.json").read_text())["objective_details"]["exploration_epsilon"] == 0.3


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("cartpole", {}, 'algorithm "ppo" would take the explored actions for its own'),
        ("smollm2-addition", {}, "raise policy.temperature to explore"),
    ],
)
def test_exploration_that_nothing_corrects_is_refused(recipe, changes, message):
    with pytest.raises(InputError, match=message):
        build.algorithm_of(api.resolve(recipe, {"rollout": {"exploration_epsilon": 0.1}, **changes}))


def test_returns():
    assert evaluate_returns(Balancer(), GymEnvironment(), seed=0, num_episodes=4) == [500.0] * 4
    policy, environment = MLP(4, 2), GymEnvironment()
    returns = evaluate_returns(policy, environment, seed=0)
    assert len(returns) == 100 and returns == evaluate_returns(policy, environment, seed=0)
    assert np.mean(evaluate_returns(Fixed(0.0, 1.0), environment, seed=0, deterministic=True)) < 12
    assert 18 < np.mean(evaluate_returns(Fixed(0.5, 0.5), environment, seed=0)) < 27  # random play's known mean: 22


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Cartpole-v1", {}, 'unknown environment "Cartpole-v1". Did you mean "CartPole-v1"?'),
        ("CartPole", {}, "unknown environment"),
        ("Pendulum-v1", {}, "only Discrete"),
        ("FrozenLake-v1", {}, "only vectors"),
        ("CartPole-v1", {"gravitas": 1}, "cannot be made"),
        ("nowhere:CartPole-v1", {}, "cannot be made"),
    ],
)
def test_what_is_not_supported_says_so(name, options, message):
    with pytest.raises(InputError) as error:
        GymEnvironment(name, **options)
    assert message in str(error.value)


def test_nan_is_an_error():
    policy = MLP(4, 2)
    with torch.no_grad():
        policy.module["policy"][0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        collect(policy, GymEnvironment(), num_episodes=2, seed=0)


def test_a_micro_batch_counts_an_episodes_actions_and_not_its_observations_too():
    batch = make_batch(collect(MLP(4, 2, seed=7), GymEnvironment(), num_episodes=2, seed=0))
    num_actions = int(batch.mask.sum())
    assert [len(list(micro_batches(batch, most))) for most in (num_actions, num_actions - 1)] == [1, 2]

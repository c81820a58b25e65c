"""Which prompts a step takes: each once an epoch, or some more often and weighed for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import write
from test_dynamic_sampling import Silent, rows

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.batching import minibatches
from logpi.credit import assign_credit
from logpi.errors import InputError
from logpi.exact import TabularPolicy, tabular
from logpi.learner import Learner
from logpi.rollout.prompt_order import PromptOrder
from logpi.trainer import Trainer
from logpi.trajectory import Trajectory, make_batch

PROMPTS = [{"prompt": f"{n}+{n % 5}="} for n in range(12)]


def outcome(uid: int, reward: float) -> Trajectory:
    one = torch.zeros(1)
    return Trajectory(uid, 0, 0, 0, one.long(), one, one, one.long(), True, False, rewards=torch.tensor([reward]))


def told(upsampling: float, rewards: dict[int, list[float]], count: int = 4) -> PromptOrder:
    order = PromptOrder(list(range(10, 18)), 0, count, upsampling)
    order.follow(0, [outcome(uid, r) for uid, values in rewards.items() for r in values])
    return order


def test_chances_follow_the_spread_of_rewards():
    order = told(0.5, {10: [0, 1], 11: [1, 1], 12: [0, 0, 0, 4]})
    spreads = np.array([0.5, 0.0, np.std([0, 0, 0, 4])])
    spreads = np.concatenate([spreads, np.full(5, spreads.mean())])  # not seen yet
    np.testing.assert_allclose(order.chances(), 0.5 / 8 + 0.5 * spreads / spreads.sum(), rtol=1e-12)
    assert order.weight(11) == pytest.approx(2.0)  # as much as a weight can be: 1/(1 − u)
    order.follow(1, [outcome(10, 1.0), outcome(10, 1.0)])  # the last visit counts
    assert order.weight(10) == pytest.approx(2.0)
    equal = told(0.9, {uid: [1.0, 1.0] for uid in range(10, 18)})
    np.testing.assert_allclose(equal.chances(), 1 / 8)  # nothing differs: uniform


def test_prompts_come_as_often_as_their_chances_say():
    order = told(0.8, {10: [0, 1], 11: [1, 1], 12: [0, 4], 13: [0, 0]}, count=20000)
    found = Counter(order.plan(1))
    for uid, q in zip(order.uids, order.chances(), strict=True):
        assert found[uid] / 20000 == pytest.approx(q, abs=4 * (q / 20000) ** 0.5)
    assert order.plan(1) == order.plan(1) != order.plan(2)


def test_the_past_is_kept_and_restored():
    order = told(0.8, {10: [0, 1], 11: [1, 1]})
    before = order.plan(0), order.plan(1)
    order.follow(1, [outcome(11, 1.0), outcome(11, 3.0)])
    assert (order.plan(0), order.plan(1)) == before
    again = PromptOrder(order.uids, 0, 4, 0.8)
    again.restore(order.state())
    assert [again.plan(step) for step in range(5)] == [order.plan(step) for step in range(5)]
    assert [again.weight(uid) for uid in order.uids] == [order.weight(uid) for uid in order.uids]
    with pytest.raises(InputError, match=r"rollout\.upsampling: the checkpoint is of a run without it"):
        again.restore(PromptOrder(order.uids, 0, 4).state())


def test_the_weighed_gradient_is_that_of_uniform_prompts():
    """Every group of 2 of every prompt, prompts with their chances q: with the weights ∇J, without them another."""
    policy, row = TabularPolicy(), get_algorithm("rloo")
    learner = Learner(policy, row, learning_rate=1.0)
    chance = tabular.probabilities(policy).detach()
    order = PromptOrder([0, 1], 0, 2, 0.9)
    order.follow(0, [replace(outcome(x, r), prompt_uid=x) for x, r in ((0, 0.0), (0, 1.0), (1, 0.0), (1, 4.0))])

    def mean(weigh: bool) -> torch.Tensor:
        total = torch.zeros_like(policy.logits)
        for x, q in enumerate(order.chances()):
            for i in range(15):
                for j in range(15):
                    members = [tabular.trajectory(policy, "real", x, k, 0, s) for s, k in enumerate((i, j))]
                    members = [replace(t, weight=order.weight(x) if weigh else 1.0) for t in members]
                    batch = assign_credit(row, learner.annotate(make_batch(members), several_updates=False))
                    (ready,) = minibatches(batch, row.token_weights)
                    learner.backward(ready)
                    if policy.logits.grad is not None:
                        total -= float(q * chance[x, i] * chance[x, j]) * policy.logits.grad
        return total.flatten()

    exact = tabular.exact_gradient(policy, "real")
    found = mean(weigh=True)
    assert float((found - exact).norm()) <= 1e-12 * float(exact.norm())
    without = mean(weigh=False)
    scale = (without @ exact) / (exact @ exact)
    assert float((without - scale * exact).norm()) > 0.1 * float((scale * exact).norm())  # another direction


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", "llama")


def of_the_prompt(prompts, completions, **_):
    """Rewards that differ for every other prompt only."""
    return [int(p.split("+")[0]) % 2 * (sum(map(ord, c)) % 7) / 7 for p, c in zip(prompts, completions, strict=True)]


def start(tiny, folder, **changes):
    rollout = {"num_prompts": 4, "num_generations": 3, "max_completion_length": 6, "upsampling": 0.8}
    return api.train(
        model=tiny, data=PROMPTS, rewards=of_the_prompt, run=folder, max_steps=8, threads=1, observer=Silent(),
        policy={"dtype": "float32"}, rollout=rollout | changes.pop("rollout", {}), learner={"learning_rate": 1e-3},
        evaluation={"full_report": False, "every_steps": None}, checkpoint={"every_steps": 2}, strict=True, **changes,
    )  # fmt: skip


def test_a_run_asks_more_often_what_it_can_learn_from(tiny, tmp_path):
    summary = start(tiny, tmp_path / "run")
    assert summary["ledger"]["as_planned"]
    asked = Counter(row["prompt_uid"] % 2 for row in rows(tmp_path / "run", "samples.jsonl") if row["step"] > 3)
    assert asked[1] > 1.5 * asked[0]
    shares = [row.get("prompt_weights/effective_ratio", 1.0) for row in rows(tmp_path / "run", "metrics.jsonl")]
    assert shares[0] == 1.0 and min(shares) < 0.95 and max(shares) <= 1.0 + 1e-12


def test_a_killed_run_ends_as_if_it_had_not_been(tiny, tmp_path, monkeypatch):
    start(tiny, tmp_path / "whole")
    real, calls = Trainer.step, []

    def dies(self):
        calls.append(0)
        if len(calls) == 6:
            raise RuntimeError("killed")
        return real(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(RuntimeError):
        start(tiny, tmp_path / "run")
    monkeypatch.setattr(Trainer, "step", real)
    assert start(tiny, tmp_path / "run")["ledger"]["as_planned"]
    for name in ("metrics.jsonl", "samples.jsonl", "final/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_cannot_be_is_said(tiny, tmp_path):
    with pytest.raises(InputError, match=r"rollout\.upsampling weighs the prompts .* set one of the two to 0"):
        start(tiny, tmp_path / "run", rollout={"num_spare_prompts": 2})
    with pytest.raises(InputError, match=r"rollout\.upsampling is for language tasks"):
        api.resolve("cartpole", {"rollout": {"upsampling": 0.5}})

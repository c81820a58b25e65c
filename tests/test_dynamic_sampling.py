"""Steps that are more than prompts × completions: spare prompts, lengths that count, baselines."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement
from types import SimpleNamespace

import pytest
import torch
from models import write

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.credit import assign_credit
from logpi.errors import InputError
from logpi.exact import TabularPolicy, tabular
from logpi.experience import TaskExperience
from logpi.learner import Learner
from logpi.policies.loading import load_causal_lm
from logpi.tasks.base import Problem, Task
from logpi.tasks.rewarding import as_reward
from logpi.trainer import Trainer, informative_groups
from logpi.trajectory import make_batch

PROMPTS = [{"prompt": f"{n}+{n % 5}="} for n in range(40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", "llama")


class Silent:
    def start(self, info): ...
    def evaluation(self, step, result): ...
    def step(self, metrics, timing, sample): ...
    def note(self, text): ...
    def finish(self, summary): ...


def seldom(completions, **_):
    """1 for about one completion in ten: many groups are all zeros."""
    return [float(sum(map(ord, text)) % 10 == 0) for text in completions]


def varied(completions, **_):
    return [(7 * len(text) + sum(map(ord, text))) % 11 / 10 for text in completions]


def start(tiny, folder, *, scored_by=varied, steps=4, **sections):
    rollout = {"num_prompts": 3, "num_generations": 4, "max_completion_length": 10} | sections.pop("rollout", {})
    return api.train(
        model=tiny, data=PROMPTS, rewards=scored_by, run=folder, max_steps=steps, threads=1, observer=Silent(),
        policy={"dtype": "float32"}, rollout=rollout, learner={"learning_rate": 3e-3},
        evaluation={"full_report": False, "every_steps": None}, checkpoint={"every_steps": 1}, **sections,
    )  # fmt: skip


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# --- spare prompts ---------------------------------------------------------------------------------------------------


def test_spare_prompts_take_the_place_of_groups_that_say_nothing(tiny, tmp_path, monkeypatch):
    trained = []
    real = Trainer.trainable
    monkeypatch.setattr(Trainer, "trainable", lambda self, ts: trained.append(real(self, ts)) or trained[-1])
    summary = start(tiny, tmp_path / "run", scored_by=seldom, rollout={"num_spare_prompts": 5})
    asked = Counter()
    for step, found in enumerate(trained, 1):
        groups = {g: {float(t.rewards.sum()) for t in found if t.group == g} for g in {t.group for t in found}}
        assert 1 <= len(groups) <= 3 and all(len(values) > 1 for values in groups.values())
        step_rows = [row for row in rows(tmp_path / "run", "samples.jsonl") if row["step"] == step]
        asked[step] = len(step_rows) // 4
        uids = [row["prompt_uid"] for row in step_rows[::4]]
        assert len(set(uids)) == len(uids) and 3 <= len(uids) <= 8
        assert len(groups) == 3 or len(uids) == 8  # it stops when there are enough, or when none is left
    assert max(asked.values()) > 3  # some were needed
    for row in rows(tmp_path / "run", "metrics.jsonl"):  # what was sampled and scored counts, whether it trains or not
        own = [r["reward"] for r in rows(tmp_path / "run", "samples.jsonl") if r["step"] == row["step"]]
        assert row["reward"] == pytest.approx(sum(own) / len(own)) and "completions/unscored_ratio" not in row
        equal = sum(len(set(own[i : i + 4])) == 1 for i in range(0, len(own), 4))
        assert row["frac_reward_zero_std"] == pytest.approx(equal / (len(own) / 4))
    assert summary["ledger"]["as_planned"] and summary["ledger"]["prompts"] == asked.total()


def test_without_spare_prompts_such_groups_stay_and_count(tiny, tmp_path):
    summary = start(tiny, tmp_path / "run", scored_by=seldom)
    metrics = rows(tmp_path / "run", "metrics.jsonl")
    assert summary["ledger"]["prompts"] == 12 and max(row["frac_reward_zero_std"] for row in metrics) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"scored_by": seldom, "rollout": {"num_spare_prompts": 5}},
        {"algorithm": "reinforce_moving"},
        {"algorithm": "remax"},
        {"algorithm": "reinforce_baseline", "reward": {"dense": True}},
    ],
    ids=["spare prompts", "moving baseline", "remax", "dense rewards"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(tiny, tmp_path, monkeypatch, options):
    start(tiny, tmp_path / "whole", **options)
    real, calls = Trainer.step, []

    def dies(self):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(RuntimeError):
        start(tiny, tmp_path / "run", **options)
    monkeypatch.setattr(Trainer, "step", real)
    start(tiny, tmp_path / "run", **options)
    for name in ("metrics.jsonl", "samples.jsonl", "final/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_its_gradient_is_the_exact_one_up_to_a_constant(monkeypatch):
    """One wanted group and one spare, every pair counted: (2 − P)·∇J, P the chance that a group's rewards differ."""
    row, policy = get_algorithm("rloo"), TabularPolicy()
    learner = Learner(policy, row, learning_rate=1.0)
    chance = tabular.probabilities(policy).detach()
    groups = []  # (probability, trajectories, gradient)
    for x in range(2):
        for i, j in combinations_with_replacement(range(15), 2):
            p = float(chance[x, i] * chance[x, j]) * (1 if i == j else 2) / 2
            members = [tabular.trajectory(policy, "binary", x, k, 0, s) for s, k in enumerate((i, j))]
            groups.append((p, members, x))

    def gradient(trajectories):
        batch = assign_credit(row, learner.annotate(make_batch(trajectories), several_updates=False))
        learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
        return torch.zeros_like(policy.logits) if policy.logits.grad is None else -policy.logits.grad

    alone = [gradient(members) for _, members, _ in groups]
    trainer = SimpleNamespace(steps_done=0, config=SimpleNamespace(rollout=SimpleNamespace(num_spare_prompts=1)))
    mean, informative = torch.zeros_like(policy.logits), 0.0
    for (p, first, _), of_first in zip(groups, alone, strict=True):
        if informative_groups(first):  # enough: no spare prompt is sampled
            informative += p
            mean += p * of_first
            continue
        for (q, second, _), of_second in zip(groups, alone, strict=True):
            both = first + [replace(t, group=1) for t in second]
            trained = Trainer.trainable(trainer, both)
            assert [t.group for t in trained] == ([1, 1] if informative_groups(second) else [0, 0, 1, 1])
            mean += p * q * (of_second if len(trained) == 2 else torch.zeros_like(mean))
    exact = tabular.exact_gradient(policy, "binary")
    assert 0.1 < informative < 0.9
    assert float((mean.flatten() - (2 - informative) * exact).norm()) <= 1e-12 * float(exact.norm())


# --- lengths ---------------------------------------------------------------------------------------------------------


def experience(tiny, **options):
    changes = {"task": {"name": "custom", "data": PROMPTS, "rewards": varied}, "policy": {"model": tiny}}
    changes |= {"rollout": {"max_completion_length": 10}, "reward": options}
    return api.build(api.make_config(changes))[0]


def test_the_overlong_punishment_is_a_line(tiny):
    made = experience(tiny, overlong_tokens=4)
    sampled = made.sample(0, 0, range(8))
    plain = experience(tiny).reward(sampled)
    lengths = {len(t) for t in sampled}
    assert {10} < lengths and min(lengths) <= 6
    for t, before, after in zip(sampled, plain, made.reward(sampled), strict=True):
        lost = float(before.rewards.sum() - after.rewards.sum())
        assert lost == pytest.approx({7: 0.25, 8: 0.5, 9: 0.75, 10: 1.0}.get(len(t), 0.0))


def test_cut_completions_can_be_left_out_of_the_step(tiny):
    made = experience(tiny, truncated="exclude")
    sampled = made.sample(0, 0, range(8))
    found = made.reward(sampled)
    assert any(t.truncated for t in found) and any(t.terminated for t in found)
    ended = Counter(t.group for t in found if t.terminated)
    for t in found:
        assert (t.rewards is None) == (t.truncated or ended[t.group] == 1)
        assert (t.failure == "truncated") == t.truncated


# --- baselines -------------------------------------------------------------------------------------------------------


def test_remax_compares_with_the_likeliest_completion(tiny, tmp_path, monkeypatch):
    batches = []
    real = Trainer.trainable
    monkeypatch.setattr(Trainer, "trainable", lambda self, ts: batches.append(ts) or real(self, ts))
    summary = start(tiny, tmp_path / "run", algorithm="remax", steps=1, rollout={"num_generations": 1})
    likeliest = {t.group: t for t in batches[0] if t.is_baseline}
    sampled = [t for t in batches[0] if not t.is_baseline]
    assert len(likeliest) == len(sampled) == 3
    assert summary["ledger"]["completions"] == 3 and summary["ledger"]["as_planned"]
    task = Task("own", [Problem(t.prompt_uid, PROMPTS[t.prompt_uid]["prompt"]) for t in sampled], [Problem(99, "1=")],
                [as_reward(varied)])  # fmt: skip
    policy = load_causal_lm(tiny, dtype="float32")
    own = TaskExperience(policy, task, seed=0, num_prompts=3, num_generations=1, max_completion_length=10)
    for problem, t in zip(task.train, sampled, strict=True):
        greedy = own.complete_greedily([problem])[0]
        assert likeliest[t.group].actions.tolist() == greedy.actions.tolist()
    row = rows(tmp_path / "run", "metrics.jsonl")[0]
    assert row["reward"] == pytest.approx(sum(float(t.rewards.sum()) for t in sampled) / 3)
    assert math.isfinite(row["loss"]) and row["grad_norm"] > 0


def test_a_group_whose_likeliest_completion_has_no_reward_is_left_out(tiny):
    made = api.build(api.make_config({
        "task": {"name": "custom", "data": PROMPTS, "rewards": varied}, "policy": {"model": tiny},
        "rollout": {"max_completion_length": 10, "num_prompts": 2, "num_generations": 3},
        "algorithm": {"name": "remax"},
    }))[0]  # fmt: skip
    sampled = made.sample(0, 0, range(2))
    broken = [replace(t, failure="logits not finite") if t.is_baseline and t.group == 0 else t for t in sampled]
    found = made.reward(broken)
    assert all((t.rewards is None) == (t.group == 0) for t in found) and {t.group for t in found} == {0, 1}


def test_a_moving_baseline_is_used_before_it_follows(tiny, tmp_path, monkeypatch):
    seen = []
    real = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self: seen.append(self.learner.moving_baseline) or real(self))
    start(tiny, tmp_path / "run", algorithm="reinforce_moving", steps=3)
    expected, means = 0.0, [row["reward"] for row in rows(tmp_path / "run", "metrics.jsonl")]
    for found, mean in zip(seen, means, strict=False):
        expected += 0.1 * (mean - expected)
        assert found == pytest.approx(expected)
    first = rows(tmp_path / "run", "metrics.jsonl")[0]
    assert first["loss"] != 0.0  # b was still 0: the loss is −mean of log π·R, not of log π·(R − b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"overlong_tokens": 99}}, "overlong_tokens=99 is over rollout.max_completion_length=10"),
        ({"algorithm": {"name": "rloo", "kl": "k1_in_los"}}, "algorithm.kl = 'k1_in_los'"),
        ({"algorithm": "reinforce", "rollout": {"num_spare_prompts": 1}}, 'algorithm "reinforce" does not compare'),
    ],
)
def test_what_cannot_be_is_said(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        start(tiny, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"num_spare_prompts": 1}}, "rollout.num_spare_prompts is for language tasks"),
        ({"reward": {"dense": True}}, "reward.dense is for language tasks"),
        (
            {"algorithm": {"name": "remax", "gamma": None, "gae_lambda": None}},
            'algorithm "remax" is for language tasks',
        ),
    ],
)
def test_what_an_environment_has_not_is_said(changes, message):
    with pytest.raises(InputError, match=message):
        api.resolve("cartpole", changes)


def test_a_run_with_nothing_held_out_evaluates_nothing(tiny, tmp_path):
    task = {"name": "custom", "data": PROMPTS, "rewards": varied, "heldout": 0}
    config = api.make_config({"task": task, "policy": {"model": tiny}, "rollout": {"max_completion_length": 6}})
    found = api.build(config)[0].evaluate(0, full=True)
    assert found.n == 0 and found.extras["texts"] == []

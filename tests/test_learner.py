"""The update: gradients that batching does not change, what is detached, and the numbers that are reported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import gradient, minibatch, policy, relative_error, sample, write

from logpi.algorithms import get_algorithm
from logpi.batching import micro_batches, minibatches
from logpi.learner import Learner, Update
from logpi.losses import per_sequence, per_token, per_trajectory
from logpi.metrics import reward_spread, step_metrics
from logpi.policies.loading import load_causal_lm
from logpi.trajectory import Trajectory, make_batch

TINY = [("gpt2", torch.float64, 1e-12), ("gpt2", torch.float32, 1e-6), ("llama", torch.float32, 1e-6)]
LENGTHS = [3, 17, 64, 40]
ROWS = {
    "rloo": get_algorithm("rloo"),
    "rloo, KL in the reward": get_algorithm("rloo").with_options(beta=0.1),
    "grpo, KL in the loss": get_algorithm("grpo").with_options(beta=0.1),
    "rloo, exact KL in both": replace(get_algorithm("rloo"), kl="exact_in_reward_and_loss", beta=0.1),
    "ppo": get_algorithm("ppo"),
}


def tiny_policy(kind, dtype, algorithm):
    """Return a policy; with values that differ from state to state where the algorithm has them."""
    out = policy(kind, dtype, value_head=algorithm.uses_values)
    if out.value_head is not None:
        out.value_head.to(dtype)
        torch.nn.init.normal_(out.value_head.weight, 0, 0.1, generator=torch.Generator().manual_seed(0))
    return out


def equal(found, expected, tolerance):
    return found[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance) and (
        relative_error(found[1], expected[1]) <= tolerance
    )


# --- what must not matter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), TINY)
def test_order_and_micro_batches_change_nothing(kind, dtype, tolerance, name):
    algorithm = ROWS[name]
    tiny = tiny_policy(kind, dtype, algorithm)
    trajectories = sample(tiny, LENGTHS, 4)
    assert len({len(t) for t in trajectories}) > 4
    other = policy(kind, dtype, seed=1) if algorithm.beta else None  # a KL that is not 0
    expected = gradient(tiny, trajectories, algorithm, reference=other)
    assert all(bool(g.any()) for g in expected[1].values())
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [trajectories[i] for i in order]
    assert equal(gradient(tiny, mixed, algorithm, reference=other), expected, tolerance)
    for tokens in (1, 70, 200):
        found = gradient(tiny, trajectories, algorithm, reference=other, micro_batch_tokens=tokens)
        assert equal(found, expected, tolerance)


@pytest.mark.parametrize("name", ["rloo", "grpo, KL in the loss"])
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), TINY)
def test_other_groups_in_the_batch_add_and_nothing_else(kind, dtype, tolerance, name):
    algorithm = ROWS[name]
    tiny = tiny_policy(kind, dtype, algorithm)
    other = policy(kind, dtype, seed=1) if algorithm.beta else None
    trajectories = sample(tiny, [5, 60, 9], 4, max_new_tokens=60)
    parts = [[t for t in trajectories if t.group == g] for g in range(3)]
    assert len({max(map(len, part)) for part in parts}) == 3  # beside the longer ones, the shorter are padded
    whole_loss, whole = gradient(tiny, trajectories, algorithm, reference=other)
    each = [gradient(tiny, part, algorithm, reference=other) for part in parts]  # both rows weigh by 1/trajectories
    mean = {n: sum(g[n] for _, g in each) / 3 for n in whole}
    assert equal((whole_loss, whole), (sum(loss for loss, _ in each) / 3, mean), tolerance)


def test_a_tokenizer_that_pads_with_its_end_token_changes_nothing(tmp_path):
    apart, one = (
        load_causal_lm(write(tmp_path / pad, "gpt2", pad=f"<{pad}>", generation_ends=[0, 1]), dtype="float32")
        for pad in ("pad", "eos")
    )
    assert one.tokenizer.pad_token_id == one.tokenizer.eos_token_id == 0 != apart.tokenizer.pad_token_id
    trajectories, same = sample(apart, LENGTHS), sample(one, LENGTHS)
    assert [t.actions.tolist() for t in same] == [t.actions.tolist() for t in trajectories]
    assert {0, 1} <= {int(t.actions[-1]) for t in trajectories if t.terminated}
    assert relative_error(gradient(one, same)[1], gradient(apart, trajectories)[1]) == 0


def test_rows_without_a_gradient_are_left_out_and_that_changes_nothing():
    tiny = policy("gpt2", torch.float64)
    trajectories = [replace(t, rewards=0 * t.rewards) if t.group == 1 else t for t in sample(tiny, LENGTHS)]
    learner = Learner(tiny, get_algorithm("rloo"), learning_rate=1e-3)
    batch = minibatch(learner, trajectories)
    found = learner.backward(batch)
    assert found.num_trained == sum((batch.advantages != 0).any(1).tolist()) <= 12
    assert found.log_ratio_max < 1e-13  # the last bits are float32's and bfloat16's promise
    slopes = {n: p.grad.clone() for n, p in learner.parameters.items()}
    learner.optimizer.zero_grad()
    learner.loss(batch)[0].backward()
    assert relative_error({n: p.grad for n, p in learner.parameters.items()}, slopes) < 1e-12
    nothing = learner.backward(replace(batch, advantages=0 * batch.advantages))
    assert nothing.num_trained == 0 and learner.update(nothing, 0).norm == 0.0 and learner.num_updates == 0


# --- ends ------------------------------------------------------------------------------------------------------------


def test_the_end_is_trained():
    """Rewarding ended completions and nothing else makes ends likelier, by the gradient at the end action itself."""
    tiny = policy("gpt2", torch.float64)
    ended = [t for t in sample(tiny, LENGTHS) if t.terminated][:4]
    learner = Learner(tiny, get_algorithm("reinforce"), learning_rate=1e-3)
    ones = [replace(t, rewards=torch.ones(len(t), dtype=torch.float64) / len(t)) for t in ended]
    batch = minibatch(learner, ones)
    assert batch.mask.sum(1).tolist() == [len(t) for t in ended]
    last = torch.nn.functional.one_hot(batch.lengths - 1, batch.mask.shape[1]).bool()
    only_ends = replace(batch, mask=batch.mask, token_weights=batch.token_weights * last)
    found = learner.backward(only_ends)
    norms = [float(p.grad.norm()) for p in learner.parameters.values()]
    assert min(norms) > 0
    learner.update(found, 0)
    after = tiny.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs.detach()
    assert (after[last].sum() - batch.behavior_log_probs[last].sum()) > 0


# --- several updates -------------------------------------------------------------------------------------------------


def test_old_log_probs_are_fixed_before_the_first_update_and_carry_no_gradient():
    tiny = tiny_policy("gpt2", torch.float32, ROWS["ppo"])
    learner = Learner(tiny, ROWS["ppo"], learning_rate=1e-2, micro_batch_tokens=100)
    trajectories = sample(tiny, LENGTHS)
    batch = minibatch(learner, trajectories, several_updates=True)
    for name in ("old_log_probs", "values", "final_values", "advantages", "value_targets", "token_weights"):
        assert not getattr(batch, name).requires_grad, name
    assert torch.equal(batch.old_log_probs, batch.behavior_log_probs)  # no update since: the same bits
    # on-policy they are what the learner itself finds: the first gradient is the same
    one, several = (gradient(tiny, trajectories, "ppo", several_updates=s) for s in (False, True))
    assert equal(several, one, 1e-6)
    first = learner.backward(batch)
    assert first.clip_fraction == 0.0 and learner.update(first, 0).norm > 0
    second = learner.backward(batch)
    assert second.log_ratio_max > 0 and second.clip_fraction > 0


@pytest.mark.parametrize("row", ["rloo", "grpo", "dapo", "gspo", "cispo"])
def test_the_clip_fraction_is_the_share_of_actions_whose_gradient_is_cut(row):
    """Where an advantage pushes a ratio further out of its band: token by token, or for GSPO whole sequences; cispo
    bounds a weight and cuts no gradient."""
    tiny = tiny_policy("gpt2", torch.float32, ROWS["rloo"])
    algorithm = get_algorithm(row)
    learner = Learner(tiny, algorithm, learning_rate=1e-9, micro_batch_tokens=100)
    batch = minibatch(learner, sample(tiny, LENGTHS), several_updates=True)
    draws = torch.Generator().manual_seed(1)
    moved = 0.3 * torch.randn(batch.mask.shape, generator=draws) * batch.mask
    found = learner.backward(replace(batch, old_log_probs=batch.old_log_probs - moved)).clip_fraction
    options = algorithm.resolved_options()
    if row == "cispo":
        assert found == 0.0
        return
    ratio = moved if row != "gspo" else (moved.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True)).expand_as(moved)
    low, high = options["epsilon"], options["epsilon_high"] or options["epsilon"]
    cut = ((ratio.exp() > 1 + high) & (batch.advantages > 0)) | ((ratio.exp() < 1 - low) & (batch.advantages < 0))
    trained = batch.mask & (batch.advantages != 0).any(1, keepdim=True)
    assert 0.05 < found < 0.95 and found == pytest.approx(float((cut & trained).sum() / trained.sum()), abs=1e-6)


def test_minibatches_keep_groups_whole_and_count_each_row_once():
    batch = make_batch(sample(policy("gpt2"), [3, 5, 4, 6], 3))
    batch = replace(batch, advantages=torch.arange(12.0)[:, None].expand_as(batch.mask))
    for reduction in (per_trajectory, per_token, per_sequence):
        parts = list(minibatches(batch, reduction, updates=2, num_minibatches=2, seed=1))
        assert len(parts) == 4
        for part in parts:
            assert torch.equal(part.token_weights, reduction(part.mask))
            assert part.group.unique(return_counts=True)[1].tolist() == [3, 3]
            rows = part.advantages[:, 0].long()
            assert torch.equal(part.actions, batch.actions[rows][:, : part.actions.shape[1]])
        for first, second in (parts[:2], parts[2:]):
            rows = torch.cat([first.advantages[:, 0], second.advantages[:, 0]])
            assert rows.sort().values.tolist() == list(range(12))
    # a rollout of one group is cut between its trajectories
    alone = list(minibatches(batch.select(torch.arange(3)), per_token, num_minibatches=3))
    assert [len(part) for part in alone] == [1, 1, 1]


@pytest.mark.parametrize("max_tokens", [1, 60, 90, 120, 150, 200, 10**6])
def test_micro_batches_hold_each_row_once_and_keep_to_the_limit(max_tokens):
    batch = make_batch(sample(policy("gpt2"), LENGTHS, 4))
    parts = list(micro_batches(batch, max_tokens))
    assert torch.cat(parts).sort().values.tolist() == list(range(16))
    for rows in parts:
        prompts = {int(batch.group[i]): len(batch.inputs[i]) for i in rows.tolist()}
        assert len(rows) == 1 or int(batch.lengths[rows].sum()) + sum(prompts.values()) <= max_tokens
    for group in range(4):
        members = batch.group == group
        first = int(members.int().argmax())
        if int(batch.lengths[members].sum()) + len(batch.inputs[first]) <= max_tokens:  # its prompt runs once
            assert sum(bool(members[rows].any()) for rows in parts) == 1


# --- the optimiser ---------------------------------------------------------------------------------------------------


def test_adamw_is_torchs_and_imports_no_compiler():
    code = """
import sys, torch
from logpi.optimizer import AdamW
from logpi.trainer import use_threads
use_threads(1)
def taken(kind):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 300))
    optimizer = kind([weight], lr=0.1, weight_decay=0.1, fused=True)
    for step in range(4):
        weight.grad = torch.sin(weight.detach() * (step + 3))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert weight.grad is None
    return weight.detach()
ours = taken(AdamW)
assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
assert not {"torch._dynamo", "torch._inductor"} & sys.modules.keys()
assert torch.equal(ours, taken(torch.optim.AdamW))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_reward_spread_by_hand():
    totals, group = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0]), torch.tensor([4, 9, 4, 9, 1])
    spread, equal_fraction = reward_spread(totals, group)  # std with ddof 1: √2 of (1, 3), 0 of (5, 5), 0 of one alone
    assert spread == pytest.approx(2**0.5 / 3) and equal_fraction == pytest.approx(2 / 3)


def test_step_metrics_by_hand():
    def trajectory(group, rewards, entropy, truncated, strict):
        n = len(rewards)
        return Trajectory(
            group, 0, group, 0, torch.arange(n), torch.full((n,), -2.0), torch.full((n,), entropy), None,
            not truncated, truncated, torch.tensor(rewards), {"strict": strict, "silent": None},
        )  # fmt: skip

    trajectories = [
        trajectory(0, [0.0, 1.0], 1.0, False, 1.0),
        trajectory(0, [0.0, 0.0, 3.0], 2.0, True, None),
        trajectory(1, [2.0], 4.0, False, 0.0),
        trajectory(1, [1.0, 1.0], 0.5, False, 0.5),
    ]
    batch = make_batch(trajectories)
    batch = replace(batch, reference_log_probs=torch.where(batch.mask, -2.5, 7.0))
    gradients = [
        SimpleNamespace(
            loss=1.0, num_trajectories=4, num_trained=1, log_ratio_max=0.0, log_ratio_mean=0.0, clip_fraction=0.0
        ),
        SimpleNamespace(
            loss=2.0, num_trajectories=4, num_trained=3, log_ratio_max=0.3, log_ratio_mean=0.1, clip_fraction=0.5
        ),
    ]
    updates = [Update(gradient, norm) for gradient, norm in zip(gradients, (3.0, 5.0), strict=True)]
    found = step_metrics(trajectories, batch, updates)
    assert found == {
        "reward": 2.0,
        "reward_std": pytest.approx(2**0.5 / 2),  # √2 of (1, 3), 0 of (2, 2)
        "frac_reward_zero_std": 0.5,
        "entropy": pytest.approx((2 * 1.0 + 3 * 2.0 + 1 * 4.0 + 2 * 0.5) / 8),  # over tokens, not completions
        "completions/mean_length": 2.0,
        "completions/max_length": 3,
        "completions/clipped_ratio": 0.25,
        "num_tokens": 8,
        "loss": 1.5,
        "grad_norm": 4.0,
        "trained_fraction": 0.5,
        "mismatch/max": 0.0,
        "mismatch/mean": 0.0,
        "clip_ratio/region_mean": 0.25,
        "kl": pytest.approx(0.5),
        "rewards/strict/mean": 0.5,
    }
    unscored = replace(trajectories[0], rewards=None, failure="no reward")
    skipped = [replace(updates[0], norm=0.0, skipped="the loss is nan"), updates[1]]
    found = step_metrics([*trajectories, unscored], batch, skipped)
    assert found["completions/unscored_ratio"] == pytest.approx(0.2) and found["num_tokens"] == 10
    assert found["skipped_updates"] == 1 and found["skipped_because"] == "the loss is nan" and found["reward"] == 2.0

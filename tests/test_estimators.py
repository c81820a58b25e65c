"""Advantage estimators against hand-computed numbers and brute-force loops. Unbiasedness is in test_enumeration."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from logpi import estimators
from logpi.masking import group_sums, masked_mean, masked_sum, reverse_cumulative_sum

ALL = [getattr(estimators, name) for name in estimators.__all__]
OVER_THE_BATCH = [estimators.batch_standardised, estimators.group_centred_batch_standardised]
GROUPED = [
    estimators.leave_one_out,
    estimators.group_standardised,
    estimators.group_centred,
    estimators.length_weighted_leave_one_out,
    estimators.relative_to_mean,
    estimators.group_centred_batch_standardised,
]
NAN = math.nan


def one_action(rewards, dtype=torch.float64, group=None):
    """Return rewards, mask, group of completions with one action each."""
    rewards = torch.tensor(rewards, dtype=dtype)[:, None]
    group = torch.zeros(len(rewards), dtype=torch.long) if group is None else torch.tensor(group)
    return rewards, torch.ones_like(rewards, dtype=torch.bool), group


def ragged(seed=0):
    """Return a batch with lengths 1 to 5, two groups in mixed order, values, final values; zeros on padding. Rewards
    are positive, as `relative_to_mean` needs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 5, 1, 2, 4, 5, 2, 3])
    group = torch.tensor([7, 2, 7, 2, 7, 7, 2, 5])
    group[-1] = 2
    mask = torch.arange(5) < lengths[:, None]
    rewards, values = (torch.randn(8, 5, generator=generator, dtype=torch.float64) * mask for _ in range(2))
    rewards = rewards.abs()
    final_values = torch.randn(8, generator=generator, dtype=torch.float64) * torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    return rewards, mask, group, values, final_values


def asked(estimator, mask):
    """Return what the estimator asks for besides rewards and values."""
    draws = torch.Generator().manual_seed(1)
    data = {
        "actions": torch.randint(3, mask.shape, generator=draws) * mask,
        "log_probs": -torch.rand(mask.shape, generator=draws, dtype=torch.float64) * mask,
        "given": (torch.arange(mask.shape[1]) < 2).expand(mask.shape) & mask,
        "turns": torch.tensor([0, 0, 1, 1, 2]).expand(mask.shape) * mask,
        "log_ratios": torch.randn(mask.shape, generator=draws, dtype=torch.float64) * mask,
    }
    return {name: value for name, value in data.items() if name in inspect.signature(estimator).parameters}


def test_masking_sums_and_means_ignore_padding():
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(values, mask) == 7 and masked_mean(values, mask) == 7 / 3
    assert masked_mean(values, torch.zeros_like(mask)) == 0
    assert reverse_cumulative_sum(values, mask, 0.5).tolist() == [[2.0, 2.0, 0.0], [4.0, 0.0, 0.0]]
    sums, sizes = group_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([9, -1, 9]))
    assert sums.tolist() == [5.0, 2.0, 5.0] and sizes.tolist() == [2, 1, 2]


@pytest.mark.parametrize("estimator", ALL)
def test_advantages_are_detached_zero_on_padding_and_blind_to_what_padding_holds(estimator):
    rewards, mask, group, values, final_values = ragged()
    data = asked(estimator, mask)
    clean = estimator(
        rewards.requires_grad_(), mask, group, values.requires_grad_(), final_values.requires_grad_(), **data
    )
    assert not clean.requires_grad
    assert clean.shape == mask.shape and (clean[~mask] == 0).all() and clean[mask].abs().min() > 0
    rubbish = {n: NAN if d.is_floating_point() else True if d.dtype == torch.bool else -7 for n, d in data.items()}
    dirty = estimator(
        rewards.detach().masked_fill(~mask, NAN), mask, group, values.detach().masked_fill(~mask, NAN), final_values,
        **{n: d.masked_fill(~mask, rubbish[n]) for n, d in data.items()},
    )  # fmt: skip
    assert torch.equal(dirty, clean)


@pytest.mark.parametrize("estimator", ALL)
def test_rows_may_come_in_any_order_and_groups_do_not_mix(estimator):
    rewards, mask, group, values, final_values = ragged()
    data = asked(estimator, mask)
    whole = estimator(rewards, mask, group, values, final_values, **data)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    moved = {name: tensor[order] for name, tensor in data.items()}
    permuted = estimator(rewards[order], mask[order], group[order], values[order], final_values[order], **moved)
    torch.testing.assert_close(permuted, whole[order], rtol=1e-13, atol=1e-13)
    if estimator in OVER_THE_BATCH:
        return
    rows = torch.nonzero(group == 7)[:, 0]
    own = {name: tensor[rows] for name, tensor in data.items()}
    alone = estimator(rewards[rows], mask[rows], group[rows], values[rows], final_values[rows], **own)
    torch.testing.assert_close(alone, whole[rows], rtol=1e-13, atol=1e-13)


def test_total_reward_and_reward_to_go_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    group = torch.tensor([0, 1])
    assert estimators.total_reward(rewards, mask, group).tolist() == [[7.0, 7.0, 7.0], [24.0, 24.0, 0.0]]
    assert estimators.reward_to_go(rewards, mask, group).tolist() == [[7.0, 6.0, 4.0], [24.0, 16.0, 0.0]]
    assert estimators.reward_to_go(rewards, mask, group, gamma=0.5).tolist() == [[3.0, 4.0, 4.0], [16.0, 16.0, 0.0]]


def test_leave_one_out_against_each_others_mean():
    rewards, mask, group, *_ = ragged()
    totals = [float(r[m].sum()) for r, m in zip(rewards, mask)]
    advantages = estimators.leave_one_out(rewards, mask, group)
    for i in range(8):
        others = [totals[j] for j in range(8) if j != i and group[j] == group[i]]
        expected = totals[i] - sum(others) / len(others)
        assert advantages[i][mask[i]].tolist() == pytest.approx([expected] * int(mask[i].sum()), rel=1e-12)
    # the other form: G/(G−1) (R_i − mean)
    rewards, mask, group = one_action([0.0, 1.0, 0.25, 3.0])
    expected = 4 / 3 * (rewards - rewards.mean())
    torch.testing.assert_close(estimators.leave_one_out(rewards, mask, group), expected)


def test_group_standardised_against_torch_std():
    rewards, mask, group = one_action([0.0, 1.0, 0.25, 3.0, 5.0, 6.0, 1.0], group=[0, 0, 0, 0, 1, 1, 1])
    expected = torch.cat([(r - r.mean()) / (r.std(correction=1) + 0.01) for r in (rewards[:4], rewards[4:])])
    torch.testing.assert_close(estimators.group_standardised(rewards, mask, group, std_epsilon=0.01), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reward", [0.95, 0.1, -1 / 3, 1e30, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(dtype, reward, size):
    rewards, mask, group = one_action([reward] * size, dtype)
    for advantages in (
        estimators.leave_one_out(rewards, mask, group),
        estimators.group_standardised(rewards, mask, group),
        estimators.group_standardised(rewards, mask, group, std_epsilon=0.0),
    ):
        assert (advantages == 0).all()


@pytest.mark.parametrize("estimator", GROUPED)
def test_nan_rewards_are_not_hidden(estimator):
    rewards, mask, group = one_action([1.0, NAN, 0.0])
    assert not estimator(rewards, mask, group).isfinite().any()


@pytest.mark.parametrize("rewards", [[0.0] + [0.95] * 7, [0.95] + [0.0] * 7, [0.95] * 7 + [0.95 + 1e-7]])
def test_one_that_differs_stays_bounded(rewards):
    rewards, mask, group = one_action(rewards, torch.float32)
    standardised = estimators.group_standardised(rewards, mask, group)[:, 0]
    assert standardised.abs().max() <= 7 / math.sqrt(8) + 1e-5  # the largest |z| that 8 numbers with ddof 1 can have
    odd, others = (0, slice(1, 8)) if rewards[1] == rewards[2] and rewards[0] != rewards[1] else (7, slice(0, 7))
    assert len(set(standardised[others].tolist())) == 1
    assert float(standardised.sum()) == pytest.approx(0, abs=1e-5)
    leave_one_out = estimators.leave_one_out(rewards, mask, group)[:, 0]
    difference = float(rewards[odd] - rewards[odd - 1])
    assert float(leave_one_out[odd]) == pytest.approx(difference, rel=1e-5)
    assert leave_one_out[others].tolist() == pytest.approx([-difference / 7] * 7, rel=1e-5)


@pytest.mark.parametrize("estimator", GROUPED)
def test_a_group_of_one_is_an_error_that_names_the_remedy(estimator):
    with pytest.raises(ValueError, match=r"group of one.*num_generations"):
        estimator(*one_action([1.0, 2.0, 3.0], group=[0, 0, 1]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reward_to_go_leave_one_out_by_loops(gamma):
    rewards, mask, group, *_ = ragged(1)
    lengths = mask.sum(1).tolist()
    returns = [
        [sum(gamma ** (k - t) * float(rewards[i, k]) for k in range(t, n)) for t in range(n)]
        for i, n in enumerate(lengths)
    ]
    advantages = estimators.reward_to_go_leave_one_out(rewards, mask, group, gamma=gamma)
    num_fallbacks = 0
    for i in range(8):
        others = [j for j in range(8) if j != i and group[j] == group[i]]
        for t in range(lengths[i]):
            running = [returns[j][t] for j in others if t < lengths[j]]
            num_fallbacks += not running
            running = running or [g for j in others for g in returns[j]]
            assert float(advantages[i, t]) == pytest.approx(returns[i][t] - sum(running) / len(running), rel=1e-11)
    assert num_fallbacks  # the longest of a group has nobody beside it at its end
    alone = estimators.reward_to_go_leave_one_out(rewards[:1], mask[:1], group[:1], gamma=gamma)
    assert alone[0, : lengths[0]].tolist() == pytest.approx(returns[0])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (0.99, 1.0), (0.9, 0.0)])
def test_generalised_advantage_by_double_loop(gamma, gae_lambda):
    rewards, mask, group, values, final_values = ragged(2)
    options = dict(gamma=gamma, gae_lambda=gae_lambda)
    advantages = estimators.generalised_advantage(rewards, mask, group, values, final_values, **options)
    for i, n in enumerate(mask.sum(1).tolist()):
        v = [*values[i, :n].tolist(), float(final_values[i])]
        deltas = [float(rewards[i, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, n))
            assert float(advantages[i, t]) == pytest.approx(expected, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (0.8, 0.0)])
def test_generalised_advantage_by_turn_by_loops(gamma, gae_lambda):
    """Over the sums and the first values of turns of different lengths, as if each were one action."""
    rewards, mask, group, values, final_values = ragged()
    turns = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 3]] * 4)
    options = {"turns": turns, "gamma": gamma, "gae_lambda": gae_lambda}
    found = estimators.generalised_advantage_by_turn(rewards, mask, group, values, final_values, **options)
    targets = estimators.turn_targets(rewards, mask, group, values, final_values, **options)
    for i, length in enumerate(mask.sum(1).tolist()):
        own = [[t for t in range(length) if turns[i, t] == k] for k in range(int(turns[i, length - 1]) + 1)]
        v = [float(values[i, ts[0]]) for ts in own] + [float(final_values[i])]
        r = [sum(float(rewards[i, t]) for t in ts) for ts in own]
        for k, ts in enumerate(own):
            expected = sum(
                (gamma * gae_lambda) ** (j - k) * (r[j] + gamma * v[j + 1] - v[j]) for j in range(k, len(own))
            )
            for t in ts:
                assert float(found[i, t]) == pytest.approx(expected, abs=1e-12)
                assert float(targets[i, t]) == pytest.approx(expected + v[k], abs=1e-12)


def test_generalised_advantage_at_both_ends_of_lambda():
    rewards, mask, group, values, _ = ragged(3)
    terminated, cut = torch.zeros(8, dtype=torch.float64), torch.full((8,), 10.0, dtype=torch.float64)
    gae = estimators.generalised_advantage
    steps_left = reverse_cumulative_sum(torch.ones_like(rewards), mask)
    # λ=1: reward-to-go minus V; a truncated one adds the discounted value of where it was cut
    to_go = estimators.reward_to_go(rewards, mask, group, gamma=0.9)
    expected = (to_go - values) * mask
    torch.testing.assert_close(gae(rewards, mask, group, values, terminated, gamma=0.9, gae_lambda=1.0), expected)
    expected = (to_go + 0.9**steps_left * 10 - values) * mask
    torch.testing.assert_close(gae(rewards, mask, group, values, cut, gamma=0.9, gae_lambda=1.0), expected)
    # λ=0: one-step TD; only the last action sees how it ended
    ended, bootstrapped = (gae(rewards, mask, group, values, f, gamma=0.9, gae_lambda=0.0) for f in (terminated, cut))
    last = steps_left == 1
    torch.testing.assert_close(bootstrapped - ended, torch.where(last, 9.0, 0.0).double())
    torch.testing.assert_close(ended[last], (rewards - values)[last])
    with pytest.raises(ValueError, match="value"):
        gae(rewards, mask, group)

"""Surrogates, KL terms and reductions by their gradients: a loss value proves nothing on-policy."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from logpi import losses
from logpi.masking import masked_sum
from logpi.trajectory import Trajectory, make_batch

SURROGATES = [losses.score_function, losses.importance_ratio, losses.clipped_ratio]
REDUCTIONS = [losses.per_trajectory, losses.per_token, losses.per_sequence]
RATIOS = [0.5, 0.79, 0.81, 1.0, 1.19, 1.24, 1.29, 2.0]
EVERY = torch.ones(64, dtype=torch.bool)  # a mask without padding
KL = [losses.kl_k1, losses.kl_k2, losses.kl_k3]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradient(function, at: torch.Tensor) -> torch.Tensor:
    at = at.detach().clone().requires_grad_()
    function(at).sum().backward()
    return at.grad


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_on_policy_every_surrogate_climbs_the_score_times_the_advantage(surrogate):
    generator = torch.Generator().manual_seed(0)
    logits, advantages = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    actions = torch.tensor([0, 1, 2, 3, 1, 1])

    def loss(logits):
        log_probs = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        return surrogate(log_probs, log_probs.detach(), advantages, EVERY[:6])

    # ∇ log softmax = onehot − π; the loss descends, so −A times that
    score = torch.nn.functional.one_hot(actions, 4) - logits.softmax(-1)
    torch.testing.assert_close(gradient(loss, logits), -advantages[:, None] * score)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_off_policy_gradients_in_closed_form(surrogate):
    old, log_probs = torch.tensor([-1.0, -2.0, -0.5, -3.0]), torch.tensor([-1.1, -1.9, -0.55, -3.02])
    advantages = torch.tensor([2.0, -1.0, 0.5, 0.0])
    ratio = torch.ones(4) if surrogate is losses.score_function else torch.exp(log_probs - old)  # inside the clip
    torch.testing.assert_close(
        gradient(lambda p: surrogate(p, old, advantages, EVERY[:4]), log_probs), -ratio * advantages
    )


@pytest.mark.parametrize(("advantage", "ratio"), list(product([1.3, -1.3], RATIOS)))
@pytest.mark.parametrize("epsilon_high", [None, 0.28])
def test_clip_truth_table(advantage, ratio, epsilon_high):
    high = 0.2 if epsilon_high is None else epsilon_high
    old, log_prob, a = torch.tensor([-1.5]), torch.tensor([-1.5]) + torch.tensor(ratio).log(), torch.tensor([advantage])

    def loss(log_probs):
        return losses.clipped_ratio(log_probs, old, a, EVERY[:1], epsilon=0.2, epsilon_high=epsilon_high)

    # only what has already moved far enough in its advantage's direction stops
    stopped = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 0.8)
    found = float(gradient(loss, log_prob))
    assert found == pytest.approx(0.0 if stopped else -advantage * ratio, abs=1e-14)
    assert found == pytest.approx(float(loss(log_prob + 1e-6) - loss(log_prob - 1e-6)) / 2e-6, abs=1e-8)
    limit = 1 + high if advantage > 0 else 0.8
    assert float(loss(log_prob)) == pytest.approx(-advantage * (limit if stopped else ratio))


def test_an_infinite_clip_is_the_plain_ratio():
    generator = torch.Generator().manual_seed(1)
    old, log_probs, advantages = (torch.randn(50, generator=generator) for _ in range(3))
    infinite = dict(epsilon=float("inf"), epsilon_high=float("inf"))
    found = gradient(lambda p: losses.clipped_ratio(p, old, advantages, EVERY[: len(p)], **infinite), log_probs)
    assert torch.equal(
        found, gradient(lambda p: losses.importance_ratio(p, old, advantages, EVERY[: len(p)]), log_probs)
    )


def test_kl_values_and_gradients_in_closed_form():
    p, q = torch.tensor([-1.0, -2.5, -0.1]), torch.tensor([-1.4, -0.5, -0.1])
    ratio = torch.exp(q - p)
    expected = [(p - q, torch.ones(3)), (0.5 * (p - q) ** 2, p - q), (ratio - 1 - (q - p), 1 - ratio)]
    for kl, (value, slope) in zip(KL, expected, strict=True):
        torch.testing.assert_close(kl(p, q), value)
        torch.testing.assert_close(gradient(lambda x, kl=kl: kl(x, q), p), slope)
    assert (losses.kl_k3(p, q) >= 0).all() and losses.kl_k3(p, q)[2] == 0
    # near the reference k3 keeps its digits: ½d² to fp32's own precision
    tiny = losses.kl_k3(torch.tensor([-1.0], dtype=torch.float32) - 2**-10, torch.tensor([-1.0], dtype=torch.float32))
    assert float(tiny) == pytest.approx(0.5 * 2**-20 * (1 + 2**-10 / 3), rel=1e-3)


def test_what_each_kl_term_averages_to():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, generator=generator).requires_grad_()
    reference = torch.randn(5, generator=generator).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    reverse = (log_probs.exp() * (log_probs - reference)).sum()
    forward = (reference.exp() * (reference - log_probs)).sum()
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (reverse, forward)]
    probabilities = log_probs.exp().detach()  # every action, weighted by how often it is drawn
    means = [(probabilities * kl(log_probs, reference)).sum() for kl in KL]
    torch.testing.assert_close(means[0], reverse)
    torch.testing.assert_close(means[2], reverse)
    assert not torch.isclose(means[1], reverse, rtol=1e-2)
    wanted = [torch.zeros(5), slopes[0], slopes[1]]  # k1: nothing; k2: the reverse KL's; k3: the forward KL's
    for mean, slope in zip(means, wanted, strict=True):
        torch.testing.assert_close(torch.autograd.grad(mean, logits, retain_graph=True)[0], slope)


def test_value_loss():
    values, targets = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -2.5])
    torch.testing.assert_close(losses.squared_error(values, targets), torch.tensor([2.0, 0.125]))
    torch.testing.assert_close(gradient(lambda v: losses.squared_error(v, targets), values), values - targets)


def test_reductions_by_hand():
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, False, False]])
    expected = [lambda n: 1 / 3, lambda n: 1 / 7, lambda n: 1 / (3 * n)]
    for reduction, weight in zip(REDUCTIONS, expected, strict=True):
        by_hand = torch.tensor([[weight(n) if t < n else 0.0 for t in range(4)] for n in (4, 1, 2)])
        torch.testing.assert_close(reduction(mask), by_hand)
        assert not reduction(torch.zeros(2, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3], [4]], [[4, 1], [0, 2, 3]], [[0, 1, 2, 3], [4]]])
def test_micro_batches_add_up_with_global_weights_and_would_not_with_local_ones(reduction, parts):
    generator = torch.Generator().manual_seed(3)
    lengths = [4, 1, 2, 5, 3]
    trajectories = [
        Trajectory(0, i, 0, 0, torch.arange(n), torch.zeros(n), torch.zeros(n), None, True, False, torch.ones(n))
        for i, n in enumerate(lengths)
    ]
    batch = make_batch(trajectories)
    theta, features = torch.randn(3, generator=generator), torch.randn(5, 5, 3, generator=generator)
    advantages, old = torch.randn(5, 5, generator=generator), torch.randn(5, 5, generator=generator)
    weights = reduction(batch.mask)
    batch = type(batch)(**{**vars(batch), "advantages": advantages, "old_log_probs": old, "token_weights": weights})

    def slope(parts, weights_of):
        at = theta.clone().requires_grad_()
        for rows in map(torch.tensor, parts):
            part = batch.select(rows)
            log_probs = features[rows][:, : part.mask.shape[1]] @ at
            loss = losses.importance_ratio(log_probs, part.old_log_probs, part.advantages, part.mask) * weights_of(part)
            masked_sum(loss, part.mask).backward()
        return at.grad

    whole = slope([[0, 1, 2, 3, 4]], lambda part: part.token_weights)
    torch.testing.assert_close(slope(parts, lambda part: part.token_weights), whole, rtol=1e-12, atol=1e-14)
    # equal parts of one trajectory each are right by luck, except where lengths share the denominator
    lucky = len(parts) == 5 and reduction is not losses.per_token
    local = slope(parts, lambda part: reduction(part.mask) / len(parts))
    assert lucky or (local - whole).norm() > 0.01 * whole.norm()


@pytest.mark.parametrize("surrogate", [losses.importance_ratio, losses.clipped_ratio])
def test_a_ratio_that_overflows_is_not_hidden(surrogate):
    """The learner skips an update whose loss is not finite: an overflow must reach the loss, not become a number."""
    loss = surrogate(torch.tensor([[800.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[-1.0, -1.0]]), EVERY[None, :2])
    assert not bool(torch.isfinite(loss[0, 0])) and float(loss[0, 1]) == 1.0

"""The oracle: every group that a tiny policy can sample, through the library's own batch, advantage and loss.

A softmax per prompt and prefix over {EOS, 1, 2} with at most 3 actions has 15 outcomes a prompt: 7 ended by EOS, 8 cut.
J is summed over them and differentiated without any score function; the estimators' mean gradient must equal it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement, product

import pytest
import torch

from logpi import losses
from logpi.algorithms import Algorithm, get_algorithm
from logpi.masking import masked_sum
from logpi.trajectory import Trajectory, make_batch, pad

EOS, VOCABULARY, MAX_LENGTH, NUM_PROMPTS, GROUPS_A_BATCH = 0, 3, 3, 2, 60

PREFIXES = [p for n in range(MAX_LENGTH) for p in product((1, 2), repeat=n)]
OUTCOMES = [(*p, EOS) for p in PREFIXES] + list(product((1, 2), repeat=MAX_LENGTH))
KINDS = ("binary", "real", "dense")


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def policy() -> torch.Tensor:
    """Return logits [prompt, prefix, action]: prompt 0 mostly fails, prompt 1 mostly succeeds (`binary` below)."""
    logits = torch.randn(NUM_PROMPTS, len(PREFIXES), VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[0, :, 2] -= 2.0
    logits[1, :, 2] += 2.5
    return logits.requires_grad_()


@cache
def states(outcome: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([PREFIXES.index(outcome[:t]) for t in range(len(outcome))])


@cache
def rewards(kind: str, prompt: int, index: int) -> tuple[float, ...]:
    """Return the reward of each action; `binary` and `real` come at the last one, `dense` never knows the future."""
    outcome = OUTCOMES[index]
    if kind == "dense":
        return tuple(math.sin(7 * prompt + sum((a + 2) * 4.3**i for i, a in enumerate(outcome[: t + 1])))
                     for t in range(len(outcome)))  # fmt: skip
    success = float(2 in outcome)
    real = math.sin(5 * prompt + 3 * index) + success * len(outcome)
    return (*[0.0] * (len(outcome) - 1), success if kind == "binary" else real)


def log_prob_of(logits: torch.Tensor, prompt: int, outcome: tuple[int, ...]) -> torch.Tensor:
    return logits.log_softmax(-1)[prompt, states(outcome), torch.tensor(outcome)].sum()


def mean_rewards(logits: torch.Tensor, kind: str) -> torch.Tensor:
    """Return J of each prompt, summed over every outcome."""
    return torch.stack([
        torch.stack([log_prob_of(logits, x, y).exp() * sum(rewards(kind, x, i)) for i, y in enumerate(OUTCOMES)]).sum()
        for x in range(NUM_PROMPTS)
    ])  # fmt: skip


def objective_gradient(logits: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.autograd.grad(mean_rewards(logits, kind).mean(), logits)[0]


Values = Callable[[int, int], float]  # (prompt, prefix) -> V


def estimated_gradient(
    logits: torch.Tensor, algorithm: Algorithm, kind: str, group_size: int, value: Values | None = None
) -> torch.Tensor:
    """Return E over all groups of the gradient that the library climbs, prompts equally likely."""
    groups = [(x, m) for x in range(NUM_PROMPTS) for m in combinations_with_replacement(range(15), group_size)]
    probabilities = [[float(log_prob_of(logits.detach(), x, y).exp()) for y in OUTCOMES] for x in range(NUM_PROMPTS)]
    total = torch.zeros_like(logits)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(5)).tolist()  # prompts share batches
    for chunk in [order[i : i + GROUPS_A_BATCH] for i in range(0, len(order), GROUPS_A_BATCH)]:
        trajectories, weights = [], []
        for name in chunk:
            x, members = groups[name]
            orders = math.factorial(group_size) // math.prod(math.factorial(c) for c in Counter(members).values())
            probability = orders * math.prod(probabilities[x][i] for i in members)
            weights += [probability / NUM_PROMPTS * len(chunk)] * group_size
            trajectories += [replace(outcome_of(x, i, kind), sample=s, group=name) for s, i in enumerate(members)]
        batch = make_batch(trajectories)
        prompts = torch.tensor([t.prompt_uid for t in trajectories])[:, None]
        at = pad([t.inputs for t in trajectories])
        if value is not None:
            table = torch.tensor([[value(x, s) for s in range(len(PREFIXES))] for x in range(NUM_PROMPTS)])
            batch = replace(batch, values=table[prompts, at] * batch.mask, final_values=torch.zeros(len(batch)))
        log_probs = logits.log_softmax(-1)[prompts, at, batch.actions]
        advantages = algorithm.advantage(
            batch.rewards, batch.mask, batch.group, batch.values, batch.final_values,
            **algorithm.options_of(algorithm.advantage),
        )  # fmt: skip
        loss = algorithm.surrogate(
            log_probs, log_probs.detach(), advantages, batch.mask, **algorithm.options_of(algorithm.surrogate)
        )
        loss = masked_sum(loss * algorithm.token_weights(batch.mask) * torch.tensor(weights)[:, None], batch.mask)
        total -= torch.autograd.grad(loss, logits)[0]  # a loss descends
    return total


@cache
def outcome_of(prompt: int, index: int, kind: str) -> Trajectory:
    outcome = OUTCOMES[index]
    zeros = torch.zeros(len(outcome))
    ended = outcome[-1] == EOS
    return Trajectory(
        prompt_uid=prompt, sample=0, group=0, policy_version=0, actions=torch.tensor(outcome),
        behavior_log_probs=zeros, entropies=zeros, inputs=states(outcome), terminated=ended, truncated=not ended,
        rewards=torch.tensor(rewards(kind, prompt, index)),
    )  # fmt: skip


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def off_direction(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return |found − k exact| / |k exact| with the best scale k."""
    scale = (found * exact).sum() / (exact * exact).sum()
    return relative_error(found / scale, exact)


def test_the_oracle_itself():
    logits = policy()
    assert len(OUTCOMES) == len(set(OUTCOMES)) == 15
    total = sum(log_prob_of(logits.detach(), 0, y).exp() for y in OUTCOMES)
    assert float(total) == pytest.approx(1, abs=1e-14)
    low, high = mean_rewards(logits, "binary").tolist()
    assert low < 0.3 and high > 0.7
    exact, direction = objective_gradient(logits, "real"), torch.randn(logits.shape)
    with torch.no_grad():  # and once more by central differences
        up, down = (mean_rewards(logits + s * direction, "real").mean() for s in (1e-6, -1e-6))
    assert float((exact * direction).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("name", ["reinforce", "reinforce_to_go", "reinforce_baseline", "rloo"])
def test_unbiased_rows_average_to_the_exact_gradient(name, group_size, kind):
    logits = policy()
    found = estimated_gradient(logits, get_algorithm(name), kind, group_size)
    assert relative_error(found, objective_gradient(logits, kind)) < 1e-10


def test_weights_by_own_length_turn_the_gradient():
    logits = policy()
    changed = replace(get_algorithm("rloo"), reduction=losses.per_sequence)
    assert off_direction(estimated_gradient(logits, changed, "real", 2), objective_gradient(logits, "real")) > 0.05


@pytest.mark.parametrize("kind", ["real", "binary"])
def test_grpo_is_biased(kind):
    logits = policy()
    exact = objective_gradient(logits, kind)
    assert off_direction(estimated_gradient(logits, get_algorithm("grpo"), kind, 3), exact) > 0.01
    # the division by the spread alone; with binary rewards and G=3 it is a constant and doesn't show
    only_std = replace(get_algorithm("grpo"), reduction=losses.per_trajectory)
    bias = off_direction(estimated_gradient(logits, only_std, kind, 3), exact)
    assert bias > 0.01 if kind == "real" else bias < 1e-10


def test_grpo_with_binary_rewards_is_the_gradient_of_a_known_reweighting():
    """Σ_x d(x) f_G(p_x) ∇p_x, without length weights and ε: pins ddof 1 and the group mean."""
    logits, size = policy(), 4
    exact = torch.zeros_like(logits)
    for p in mean_rewards(logits, "binary"):
        rate = float(p.detach())
        weight = 0.0  # f_G(p)
        for k in range(1, size):  # k successes
            chance = math.comb(size, k) * rate**k * (1 - rate) ** (size - k)
            weight += chance * math.sqrt(k * (size - k) * (size - 1) / size) / size
        weight /= rate * (1 - rate)
        exact += weight / NUM_PROMPTS * torch.autograd.grad(p, logits, retain_graph=True)[0]
    row = replace(get_algorithm("grpo"), reduction=losses.per_trajectory).with_options(std_epsilon=0.0)
    assert relative_error(estimated_gradient(logits, row, "binary", size), exact) < 1e-10
    assert off_direction(exact, objective_gradient(logits, "binary")) > 0.005


def test_generalised_advantage_is_exact_with_lambda_1_or_the_exact_value():
    logits = policy()
    ppo = replace(get_algorithm("ppo"), reduction=losses.per_trajectory)
    exact = objective_gradient(logits, "dense")
    probabilities = [[float(log_prob_of(logits.detach(), x, y).exp()) for y in OUTCOMES] for x in range(NUM_PROMPTS)]

    @cache
    def exact_value(x: int, state: int) -> float:
        n = len(PREFIXES[state])
        through = [i for i, y in enumerate(OUTCOMES) if len(y) > n and y[:n] == PREFIXES[state]]
        reach = sum(probabilities[x][i] for i in through)
        return sum(probabilities[x][i] * sum(rewards("dense", x, i)[n:]) for i in through) / reach

    def wrong_value(x: int, state: int) -> float:
        return math.sin(3 * x + 5 * state)

    def error(value: Values, gae_lambda: float) -> float:
        row = ppo.with_options(gae_lambda=gae_lambda)
        return relative_error(estimated_gradient(logits, row, "dense", 1, value), exact)

    assert error(wrong_value, 1.0) < 1e-10
    # δ_t then depends on the outcome's own rewards, which the exact V averages over
    assert error(exact_value, 0.6) < 1e-10 and error(exact_value, 0.0) < 1e-10
    assert error(wrong_value, 0.6) > 0.01

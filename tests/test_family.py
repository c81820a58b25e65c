"""The rest of the family against the exact gradient: importance weights, KL, entropy, minimum risk, V-trace."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch

from logpi import losses
from logpi.algorithms import KL_PLACES, get_algorithm
from logpi.config import AlgorithmConfig
from logpi.credit import assign_credit
from logpi.errors import InputError
from logpi.estimators import minimum_risk, v_trace, v_trace_targets
from logpi.exact import TabularPolicy, measure, tabular
from logpi.exact.language import TinyLanguageModel
from logpi.exact.tabular import Countable
from logpi.learner import Learner
from logpi.losses import importance_weights
from logpi.policies.base import Reference
from logpi.policies.mlp import MLP
from logpi.rollout.sampling import with_exploration
from logpi.trajectory import make_batch

REINFORCE = get_algorithm("reinforce")
OTHER = TabularPolicy(shift=0.5)  # a stale sampler, or a reference


def gradient_of(objective) -> torch.Tensor:
    """Return the gradient of a function of TabularPolicy() by autograd through a sum over all completions."""
    policy = TabularPolicy()
    return tabular.flat_gradient(objective(policy), policy)


# --- samples of another policy --------------------------------------------------------------------------------------


def corrected(level, cap=None, floor=0.0, masked=False, row=REINFORCE, kind="real"):
    row = replace(row, importance={"level": level, "cap": cap, "floor": floor, "masked": masked})
    return measure(row, kind, 1, sampler=OTHER)


def test_sequence_weights_are_exact_and_shortcuts_are_measured():
    assert corrected("sequence").relative_error <= 1e-9
    none = measure(REINFORCE, "real", 1, sampler=OTHER).relative_error
    token, capped, masked = (
        corrected("token").relative_error,
        corrected("sequence", cap=2.0).relative_error,
        corrected("sequence", cap=2.0, floor=0.5, masked=True).relative_error,
    )
    assert none > 0.5 > token > 0.05 and none > masked > capped > 0.05
    assert corrected("sequence", cap=2.0).variance < corrected("sequence").variance  # what the cap is for


def test_prefix_weights_are_exact_with_rewards_to_come_that_are_exact():
    """Q(s, a) in the place of the sampled reward to come, whose expectation is under the sampler: A19."""
    policy = TabularPolicy()
    values = tabular.exact_values(policy, "dense")

    def exact_q(rewards, mask, group, v=None, final_values=None):
        following = torch.nn.functional.pad(v[:, 1:], (0, 1))
        return ((rewards + following) * mask).detach()  # r_t + V(s_{t+1}): V is 0 behind the end

    row = replace(get_algorithm("a2c"), advantage=exact_q, reduction=losses.per_trajectory)
    assert measure(row, "dense", 1, values="exact").relative_error <= 1e-9 and values.abs().max() > 0.1
    prefix = replace(row, importance={"level": "prefix", "cap": None})
    assert measure(prefix, "dense", 1, values="exact", sampler=OTHER).relative_error <= 1e-9
    token = replace(row, importance={"level": "token", "cap": None})
    assert measure(token, "dense", 1, values="exact", sampler=OTHER).relative_error > 0.01


def test_weights_are_detached_products_in_log_space():
    log_ratios = torch.tensor([[0.3, -0.2, 50.0], [0.1, 0.4, 99.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weights = importance_weights(log_ratios, mask, level="prefix", cap=None)
    assert not weights.requires_grad and float(weights[1, 2]) == 0.0
    torch.testing.assert_close(weights[0].log(), torch.tensor([0.3, 0.1, 50.1], dtype=torch.float64))
    torch.testing.assert_close(weights[1, :2].log(), torch.tensor([0.1, 0.5], dtype=torch.float64))
    whole = importance_weights(log_ratios, mask, level="sequence", cap=2.0)
    torch.testing.assert_close(whole[:, 0], torch.tensor([2.0, torch.e**0.5], dtype=torch.float64))
    kept = importance_weights(log_ratios, mask, level="token", cap=1.45, floor=0.9, masked=True)
    assert (kept > 0).tolist() == [[True, False, False], [True, False, False]]


def test_decoupled_ppo_weighs_the_clipped_objective():
    """At π = π_old its gradient is w·A∇log π, w = π_old/μ: exact with sequence weights and RLOO's clipped surrogate."""
    assert corrected("sequence", row=replace(REINFORCE, surrogate=losses.clipped_ratio)).relative_error <= 1e-9


def test_exploration_is_exact_with_weights_and_climbs_another_objective_without():
    """Samples of (1 − ε)π + ε/|A|, whatever else is in the reward."""
    explorer = TabularPolicy()
    explorer.logits.data = with_exploration(explorer.log_probs().detach(), 0.3)
    row = replace(REINFORCE, importance={"level": "sequence", "cap": None})
    assert measure(row, "real", 1, sampler=explorer).relative_error <= 1e-9
    assert measure(REINFORCE, "real", 1, sampler=explorer).relative_error > 0.1
    target = tabular.exact_gradient(TabularPolicy(), "real") + BETA * gradient_of(sequence_entropy)
    found = replace(row, entropy_in_reward=BETA)
    assert measure(found, "real", 1, sampler=explorer, exact=target).relative_error <= 1e-9
    reference = TabularPolicy(shift=-0.4)
    target = tabular.exact_gradient(TabularPolicy(), "real") - BETA * gradient_of(
        partial(sequence_kl, reference=reference)
    )
    found = replace(row, kl="k1_in_reward", beta=BETA)
    assert measure(found, "real", 1, sampler=explorer, reference=reference, exact=target).relative_error <= 1e-9


# --- KL -------------------------------------------------------------------------------------------------------------

BETA = 0.3


def sequence_kl(policy: Countable, reference: Countable = OTHER) -> torch.Tensor:
    """KL(π ‖ π_ref) of whole completions, the mean over prompts."""
    mine, other = tabular.probabilities(policy), tabular.probabilities(reference).detach()
    return (mine * (mine / other).log()).sum(1).mean()


def visited_kl(policy: Countable, forward: bool, reference: Countable = OTHER) -> torch.Tensor:
    """Σ over states of how often π visits them (held fixed) · KL of the two distributions there."""
    chance = tabular.probabilities(policy).detach()
    visits = torch.zeros(tabular.NUM_PROMPTS, len(tabular.PREFIXES), dtype=torch.float64)
    for i, completion in enumerate(tabular.COMPLETIONS):
        visits[:, tabular.states(completion)] += chance[:, i, None]
    mine, other = policy.log_probs(), reference.log_probs().detach()
    kl = torch.nn.functional.kl_div
    each = kl(mine, other, log_target=True, reduction="none") if forward else mine.exp() * (mine - other)
    return (visits * each.sum(-1)).sum() / tabular.NUM_PROMPTS


def mean_gradient(row, policy: Countable | None = None, reference: Countable = OTHER) -> torch.Tensor:
    """Return −E[∂loss] of one-completion groups, each batch through the library's own annotate, credit and backward."""
    policy = policy or TabularPolicy()
    learner = Learner(policy, row, learning_rate=1.0)
    learner.reference = reference
    chance, total = tabular.probabilities(policy).detach(), 0.0
    for x in range(tabular.NUM_PROMPTS):
        for i in range(len(tabular.COMPLETIONS)):
            batch = make_batch([tabular.trajectory(policy, "real", x, i, 0, 0)])
            batch = assign_credit(row, learner.annotate(batch, several_updates=False))
            learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
            slopes = torch.cat([p.grad.flatten() for p in learner.parameters.values()])
            total -= slopes * chance[x, i] / tabular.NUM_PROMPTS
    return total


def size(gradient: torch.Tensor) -> float:
    return float(gradient.norm())


@pytest.mark.parametrize("place", KL_PLACES)
def test_what_a_kl_term_really_climbs(place):
    found = mean_gradient(replace(REINFORCE, kl=place, beta=BETA)) - tabular.exact_gradient(TabularPolicy(), "real")
    exact = -BETA * gradient_of(sequence_kl)
    if place in ("k1_in_reward", "k2_of_sequence_in_loss", "exact_in_reward_and_loss"):
        assert size(found - exact) <= 1e-12 * size(exact)
    elif place == "k1_in_loss":
        assert size(found) <= 1e-14  # zero on average
    elif place in ("k2_in_loss", "exact_in_loss"):
        visited = -BETA * gradient_of(partial(visited_kl, forward=False))
        assert size(found - visited) <= 1e-12 * size(visited) and size(found - exact) > 1e-2 * size(exact)
    elif place == "k3_in_loss":
        visited = -BETA * gradient_of(partial(visited_kl, forward=True))
        assert size(found - visited) <= 1e-12 * size(visited) and size(found - exact) > 1e-2 * size(exact)
    else:  # no KL's gradient
        cosine = float((found * exact).sum()) / size(found) / size(exact)
        assert cosine < 0.99


def test_the_exact_kl_of_a_language_model():
    """Through prompt pass, cache and chunks, against autograd through plain forwards."""
    policy, reference = TinyLanguageModel(), TinyLanguageModel(seed=4)
    plain = tabular.exact_gradient(policy, "real")
    for place, kl in (
        ("exact_in_loss", partial(visited_kl, forward=False, reference=reference)),
        ("exact_in_reward_and_loss", partial(sequence_kl, reference=reference)),
    ):
        found = mean_gradient(replace(REINFORCE, kl=place, beta=BETA), policy, reference) - plain
        exact = -BETA * tabular.flat_gradient(kl(policy), policy)
        assert size(found - exact) <= 1e-9 * size(exact) and size(exact) > 1e-3


def test_the_exact_kl_of_an_mlp():
    policy, reference = MLP(3, 4, (5,), seed=1), MLP(3, 4, (5,), seed=2)
    for mlp in (policy, reference):
        mlp.module.double()
        mlp.module["policy"][-1].weight.data.mul_(100)
    observed = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    inputs = (observed[0], observed[1, :3])
    arguments = torch.zeros(2, 3, dtype=torch.long), mask, torch.zeros(2, dtype=torch.bool), inputs
    states = torch.zeros(2, 3, 4, dtype=torch.float64)
    states[mask] = reference.evaluate(*arguments).states.detach()
    found = policy.evaluate(*arguments, Reference(reference, states)).kl_exact
    mine, other = (p.action_log_probs(observed[:, :3]) for p in (policy, reference))
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (mine, other)))
    torch.testing.assert_close(found, expected * mask, rtol=1e-12, atol=1e-14)
    weights = list(policy.module["policy"].parameters())
    for slope, wanted in zip(
        torch.autograd.grad(found.sum(), weights), torch.autograd.grad((expected * mask).sum(), weights), strict=True
    ):
        torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-13)


def test_the_exact_kl_takes_no_further_pass_of_the_reference_and_has_less_variance_than_k1():
    passes = []

    class Counted(TabularPolicy):
        def evaluate(self, *arguments):
            passes.append(self)
            return super().evaluate(*arguments)

    policy, reference = Counted(), Counted(shift=0.5)
    for place, expected in (("k3_in_loss", 2), ("exact_in_loss", 2), ("exact_in_reward_and_loss", 3)):
        passes.clear()
        learner = Learner(policy, row := replace(REINFORCE, kl=place, beta=BETA), learning_rate=1.0)
        learner.reference = reference
        batch = make_batch([tabular.trajectory(policy, "real", 0, i, 0, i) for i in (2, 9)])
        batch = assign_credit(row, learner.annotate(batch, several_updates=False))
        learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
        assert len(passes) == expected and sum(p is reference for p in passes) == 1
    quiet = replace(get_algorithm("rloo"), beta=3.0)
    sampled, averaged = (
        measure(replace(quiet, kl=k), "real", 3, reference=OTHER).variance
        for k in ("k1_in_reward", "exact_in_reward_and_loss")
    )
    assert averaged < 0.4 * sampled  # docs/algorithms.md has the figures


def test_the_configuration_names_every_place():
    (literal, _) = get_args(AlgorithmConfig.model_fields["kl"].annotation)
    assert get_args(literal) == tuple(KL_PLACES)


# --- entropy --------------------------------------------------------------------------------------------------------


def sequence_entropy(policy: TabularPolicy) -> torch.Tensor:
    chance = tabular.probabilities(policy)
    return -(chance * chance.log()).sum(1).mean()


def test_the_entropy_in_the_reward_is_exact_for_whole_completions():
    row = replace(REINFORCE, entropy_in_reward=BETA)
    found = mean_gradient(row) - tabular.exact_gradient(TabularPolicy(), "real")
    exact = BETA * gradient_of(sequence_entropy)
    assert size(found - exact) <= 1e-12 * size(exact)
    rloo = replace(get_algorithm("rloo"), entropy_in_reward=BETA)
    target = tabular.exact_gradient(TabularPolicy(), "real") + exact
    assert measure(rloo, "real", 3, exact=target).relative_error <= 1e-9


def test_the_entropy_in_the_loss_is_that_of_each_visited_state():
    found = mean_gradient(replace(REINFORCE, entropy_coef=BETA)) - tabular.exact_gradient(TabularPolicy(), "real")

    def visited(policy):
        chance = tabular.probabilities(policy).detach()
        entropies = -(policy.log_probs().exp() * policy.log_probs()).sum(-1)
        each = [chance[:, i] * entropies[:, tabular.states(y)].sum(1) for i, y in enumerate(tabular.COMPLETIONS)]
        return BETA * sum(each).mean()

    partial_one, exact = gradient_of(visited), BETA * gradient_of(sequence_entropy)
    assert size(found - partial_one) <= 1e-12 * size(partial_one)
    cosine = float((found * exact).sum()) / size(found) / size(exact)
    assert 0.90 < cosine < 0.92  # partial: docs/algorithms.md has the figure


# --- minimum risk ---------------------------------------------------------------------------------------------------


def test_minimum_risk_over_all_completions_with_sharpness_1_is_exact():
    policy = TabularPolicy()
    total = torch.zeros_like(policy.logits)
    for x in range(tabular.NUM_PROMPTS):
        found = [tabular.trajectory(policy, "real", x, i, 0, i) for i in range(15)]
        batch = make_batch(found)
        advantages = minimum_risk(
            batch.rewards, batch.mask, batch.group,
            actions=batch.actions, log_probs=batch.behavior_log_probs, sharpness=1.0,
        )  # fmt: skip
        scores = torch.stack([
            torch.autograd.grad(
                tabular.log_probability(policy.log_probs(), x, y), policy.logits
            )[0] for y in tabular.COMPLETIONS
        ])  # fmt: skip
        total += (advantages[:, 0, None, None, None] * scores).sum(0) / 15 / tabular.NUM_PROMPTS
    exact = tabular.exact_gradient(policy, "real")
    assert size(total.flatten() - exact) <= 1e-12 * size(exact)


def test_minimum_risk_is_the_gradient_of_the_renormalised_mean_and_counts_copies_once():
    """Group of 5 with one completion twice, against autograd through E_Q[R] of the 4 different ones."""
    policy, x, members, alpha = TabularPolicy(), 1, [3, 9, 3, 0, 12], 0.4
    different = [3, 9, 0, 12]
    log_probs = torch.stack([tabular.log_probability(policy.log_probs(), x, tabular.COMPLETIONS[i]) for i in different])
    returns = torch.tensor([sum(tabular.rewards("real", x, i)) for i in different], dtype=torch.float64)
    expected = torch.autograd.grad(((alpha * log_probs).softmax(0) * returns).sum(), policy.logits)[0]
    row = get_algorithm("minimum_risk").with_options(sharpness=alpha)
    batch = make_batch([tabular.trajectory(policy, "real", x, i, 0, s) for s, i in enumerate(members)])
    learner = Learner(policy, row, learning_rate=1.0)
    batch = assign_credit(row, learner.annotate(batch, several_updates=False))
    learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
    torch.testing.assert_close(-policy.logits.grad, expected, rtol=1e-12, atol=1e-14)


# --- V-trace --------------------------------------------------------------------------------------------------------


def test_v_trace_on_policy_is_the_return_minus_the_value():
    draws = torch.Generator().manual_seed(0)
    rewards, values, final = (torch.randn(s, generator=draws, dtype=torch.float64) for s in ((3, 5), (3, 5), (3,)))
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    group, zeros = torch.arange(3), torch.zeros(3, 5, dtype=torch.float64)
    found = v_trace(rewards * mask, mask, group, values, final, log_ratios=zeros, gamma=0.9)
    for row, length in enumerate((5, 3, 1)):
        returns = final[row]
        for t in reversed(range(length)):
            returns = rewards[row, t] + 0.9 * returns
            assert float(found[row, t]) == pytest.approx(float(returns - values[row, t]), abs=1e-12)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("cap", [1.0, 0.6, 10.0])
def test_the_fixed_point_of_v_trace_is_the_value_of_the_capped_policy(cap):
    """E_μ[v(s)] applied again and again converges to V of the policy ∝ min(ρ̄ μ, π), solved exactly (Espeholt: (3))."""
    policy, kind, x = TabularPolicy(), "dense", 1
    pi, mu = policy.log_probs().detach().exp()[x], OTHER.log_probs().detach().exp()[x]
    capped = torch.minimum(cap * mu, pi)
    target = TabularPolicy()
    target.logits.data[x] = capped.log()
    expected = tabular.exact_values(target, kind)[x]
    values = torch.zeros(len(tabular.PREFIXES), dtype=torch.float64)
    chance = tabular.probabilities(OTHER).detach()[x]
    batch = make_batch([tabular.trajectory(OTHER, kind, x, i, 0, i) for i in range(15)])
    mask, at = batch.mask, torch.stack([torch.nn.functional.pad(i[1:], (0, 4 - len(i))) for i in batch.inputs])
    log_ratios = torch.where(mask, (pi / mu).log()[at, batch.actions], 0.0)
    final = torch.zeros(15, dtype=torch.float64)
    for _ in range(60):
        own = values[at] * mask
        targets = v_trace_targets(
            batch.rewards, mask, batch.group, own, final, log_ratios=log_ratios, rho_cap=cap, c_cap=cap
        )
        weights = chance[:, None] * mask
        sums, visits = torch.zeros_like(values), torch.zeros_like(values)
        sums.index_add_(0, at[mask], (targets * weights)[mask])
        visits.index_add_(0, at[mask], weights[mask])
        values = sums / visits
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_an_option_of_another_row_is_refused():
    with pytest.raises(InputError, match='algorithm "rloo" has no option "sharpness"'):
        get_algorithm("rloo").with_options(sharpness=0.1)

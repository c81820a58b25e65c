"""Our rows against polgrad's reference semantics: its conformance suite, its hand-worked cases, its estimators.

Each row goes through `Learner.loss` itself, with a policy whose log-probs are given. polgrad puts junk on padding, so a
mask that leaks shows. Compared in float64, loss and gradient, to its 1e-9.

What differs by definition:

- rloo: polgrad's is −A log π without a ratio (Ahmadian et al. 2024), ours a clipped ratio. On-policy the gradients are
  the same, the values are not; our `reinforce` row with RLOO's advantages is polgrad's loss.
- reinforce_pp: polgrad reads a mean over each completion's tokens from the paper's equation 1; ours is a mean over all
  tokens. With `per_sequence` in its place ours is polgrad's. Its batch std has ddof 1, ours 0: a factor
  √((B−1)/B).
- cispo: polgrad's upper clip is 1 + eps_high = 1.2 (verl), ours is 5 (ScaleRL), given as the bound itself.
- dapo, dr_grpo: polgrad's rows have no KL term (as in the papers); ours have one, off at beta = 0.
- gae: polgrad's ends count 0; it has no truncation to bootstrap from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logpi import estimators, losses
from logpi.algorithms import ALGORITHMS, Algorithm
from logpi.learner import Learner
from logpi.policies.base import PolicyOutput, Reference
from logpi.trajectory import Batch

polgrad = pytest.importorskip("polgrad")
from polgrad import advantages as reference_advantages  # noqa: E402
from polgrad.conformance.harness import VENDORED  # noqa: E402
from polgrad.kl import KLEstimator, KLLossConfig, kl_estimate  # noqa: E402
from polgrad.losses import Aggregation, policy_loss  # noqa: E402
from polgrad.testing import assert_conforms, random_batches  # noqa: E402
from polgrad.verify.goldens import golden_cases  # noqa: E402

SHAPES = ((4, 8), (2, 12), (6, 5))
BUDGET = 12
DAPO = ALGORITHMS["dapo"]
ROWS = {
    "grpo": ALGORITHMS["grpo"],
    "dapo": DAPO,
    "dr_grpo": ALGORITHMS["dr_grpo"].with_options(budget=float(BUDGET)),
    "gspo": ALGORITHMS["gspo"],
    "cispo": ALGORITHMS["cispo"].with_options(epsilon_high=1.2),
    "ppo": replace(ALGORITHMS["ppo"], uses_values=False),  # its policy term
    "rloo": replace(ALGORITHMS["reinforce"], name="rloo without a ratio"),
    "reinforce_pp": replace(ALGORITHMS["reinforce_pp"], reduction=losses.per_sequence),
}


class Given:
    """A policy whose log-probs are given."""

    has_values = False

    def __init__(self, log_probs: Tensor):
        self.log_probs = log_probs

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        return PolicyOutput(self.log_probs, torch.zeros_like(self.log_probs))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {"unused": nn.Parameter(torch.zeros(1))}

    def frozen_copy(self) -> Given:
        return self

    def weights_changed(self) -> None:
        pass


def loss_of(row: Algorithm) -> Any:
    """Return our learner's loss of this row, called as polgrad calls one."""

    def loss(
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        ref_logprobs: Tensor | None = None,
        **_: Tensor,
    ) -> Tensor:
        count = torch.arange(len(logprobs))
        batch = Batch(
            actions=torch.zeros(logprobs.shape, dtype=torch.long),
            mask=response_mask,
            prompt_uid=count,
            sample=count,
            group=count,
            truncated=count < 0,
            rewards=torch.zeros_like(logprobs),
            behavior_log_probs=old_logprobs,
            policy_log_probs=old_logprobs,
            inputs=tuple(count[:, None]),
            given=torch.zeros_like(response_mask),
            weights=torch.ones(len(count)),
            advantages=advantages if advantages.ndim == 2 else advantages[:, None].expand_as(logprobs),
            old_log_probs=old_logprobs,
            reference_log_probs=ref_logprobs,
            token_weights=row.token_weights(response_mask),
        )
        return Learner(Given(logprobs), row, learning_rate=0.0).loss(batch)[0]

    return loss


def reference(name: str) -> Any:
    """Return polgrad's loss of this name, without a KL term."""
    config = replace(polgrad.get_algorithm(name).loss, kl=None)
    return replace(config, norm_len=BUDGET) if config.aggregation is Aggregation.TOKEN_SUM_NORM else config


@pytest.mark.parametrize("name", ROWS)
def test_a_row_conforms_to_polgrad(name: str) -> None:
    report = assert_conforms(loss_of(ROWS[name]), reference(name), n_cases=48, shapes=SHAPES)
    print(f"{name}: loss {report.max_loss_rel_diff:.1e}, gradient {report.max_grad_rel_diff:.1e}")


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_a_kl_term_in_the_loss_is_polgrads(name: str) -> None:
    """assert_conforms leaves KL out, so compared here: k3 with the row's own reduction."""
    config = replace(reference(name), kl=KLLossConfig(kind=KLEstimator.K3, coef=0.04))
    for batch in random_batches(24, SHAPES, seed=1):
        batch.pop("rollout_logprobs")
        leaf = batch.pop("logprobs")
        ours, theirs = (leaf.clone().requires_grad_() for _ in range(2))
        found = loss_of(replace(ROWS[name], beta=0.04))(logprobs=ours, **batch)
        expected = policy_loss(config, logprobs=theirs, **batch).loss
        found.backward(), expected.backward()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_rloo_on_policy_has_the_gradient_of_polgrads() -> None:
    for batch in random_batches(24, SHAPES, seed=2, max_gap=0.0):
        ours, theirs = (batch["logprobs"].clone().requires_grad_() for _ in range(2))
        rest = {k: batch[k] for k in ("old_logprobs", "advantages", "response_mask")}
        loss_of(ALGORITHMS["rloo"])(logprobs=ours, **rest).backward()
        policy_loss(reference("rloo"), logprobs=theirs, **rest).loss.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("framework", "loss", "row"),
    [
        ("verl", "pg_clip_token_mean", replace(DAPO, options={})),
        ("openrlhf", "pg_clip_token_mean", replace(DAPO, options={})),
        ("openrlhf", "pg_clip_seq_mean_token_mean", ALGORITHMS["grpo"]),
        ("verl", "pg_clip_seq_mean_token_mean", ALGORITHMS["grpo"]),
    ],
)
def test_a_row_is_what_other_frameworks_compute(framework: str, loss: str, row: Algorithm) -> None:
    """Code that polgrad carries word for word. Both add 1e-8 to some denominators, and verl clips ratios above 3 again
    where A < 0: ratios stay below e here."""
    for batch in random_batches(24, SHAPES, seed=6, max_gap=1.0):
        rest = {k: batch[k] for k in ("old_logprobs", "response_mask")}
        rest["advantages"] = batch["advantages"][:, None].expand_as(batch["logprobs"])
        ours, theirs = (batch["logprobs"].clone().requires_grad_() for _ in range(2))
        loss_of(row)(logprobs=ours, **rest).backward()
        VENDORED[framework, loss](logprobs=theirs, **rest).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-12)


def test_hand_worked_cases_come_out() -> None:
    """One-token ratios inside, above and below the clip, and ragged batches; the one with a dual clip is not ours."""
    cases = [case for case in golden_cases() if case.config.clip.ratio_cap is None]
    assert len(cases) >= 5
    reductions = {Aggregation.TOKEN_MEAN: losses.per_token, Aggregation.SEQ_MEAN_TOKEN_MEAN: losses.per_sequence}
    for case in cases:
        options = {"epsilon": case.config.clip.eps_low, "epsilon_high": case.config.clip.eps_high}
        row = replace(DAPO, options=options, reduction=reductions[case.config.aggregation])
        leaf = case.logprobs.clone().requires_grad_()
        found = loss_of(row)(
            logprobs=leaf,
            old_logprobs=case.old_logprobs,
            advantages=case.advantages,
            response_mask=case.response_mask,
        )
        found.backward()
        assert float(found.detach()) == pytest.approx(case.expected_loss, rel=1e-12)
        torch.testing.assert_close(leaf.grad, case.expected_grad_logprobs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_are_polgrads(kind: str) -> None:
    ours = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}[kind]
    for batch in random_batches(12, SHAPES, seed=3):
        mask = batch["response_mask"]
        expected = kl_estimate(batch["logprobs"], batch["ref_logprobs"], KLEstimator(kind), response_mask=mask)
        torch.testing.assert_close(ours(batch["logprobs"], batch["ref_logprobs"])[mask], expected[mask])


def rewarded() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rewards at the last action, mask, group and each trajectory's reward; groups of 2, 3 and 5."""
    draws = torch.Generator().manual_seed(4)
    group = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1, 2, 2])
    lengths = torch.randint(1, 7, (10,), generator=draws)
    mask = torch.arange(6) < lengths[:, None]
    totals = torch.randn(10, generator=draws, dtype=torch.float64)
    rewards = torch.zeros(10, 6, dtype=torch.float64)
    rewards[torch.arange(10), lengths - 1] = totals
    return rewards, mask, group, totals


def test_advantages_are_polgrads() -> None:
    rewards, mask, group, totals = rewarded()
    standard = reference_advantages.GroupNormConfig(center=True, scale="std")
    centred = reference_advantages.GroupNormConfig(center=True, scale="none")
    whole = reference_advantages.ReinforcePPConfig(batch_norm=True)
    ddof = (10 / 9) ** 0.5  # its std over the batch has ddof 1, ours 0
    expected = {
        estimators.group_standardised: reference_advantages.grpo_advantages(totals, group, standard),
        estimators.group_centred: reference_advantages.grpo_advantages(totals, group, centred),
        estimators.leave_one_out: reference_advantages.rloo_advantages(totals, group),
        estimators.batch_standardised: ddof * reference_advantages.reinforce_pp_advantages(totals, config=whole),
        estimators.group_centred_batch_standardised: ddof
        * reference_advantages.reinforce_pp_advantages(totals, group, config=whole),
    }
    for estimator, per_trajectory in expected.items():
        tolerance = 1e-7 if "batch" in estimator.__name__ else 1e-12  # ddof leaves its 1e-8 beside the std
        found = estimator(rewards, mask, group)
        torch.testing.assert_close(found, per_trajectory[:, None] * mask, rtol=tolerance, atol=1e-12)


def test_generalised_advantage_is_polgrads_where_episodes_end() -> None:
    rewards, mask, group, _ = rewarded()
    draws = torch.Generator().manual_seed(5)
    values = torch.where(mask, torch.randn(mask.shape, generator=draws, dtype=torch.float64), 0.0)
    rewards = torch.where(mask, torch.randn(mask.shape, generator=draws, dtype=torch.float64), 0.0)
    config = reference_advantages.GAEConfig(gamma=0.99, lam=0.95)
    expected, _ = reference_advantages.gae(rewards, values, config=config, response_mask=mask)
    found = estimators.generalised_advantage(
        rewards, mask, group, values, torch.zeros(10, dtype=torch.float64), gamma=0.99, gae_lambda=0.95
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

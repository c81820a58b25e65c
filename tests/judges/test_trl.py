"""Our learner's gradients against TRL's own loss code, on SmolLM2 and one fixed batch of its completions.

TRL 1.16 does all of its side by itself: it gets prompts, completions and rewards, and computes advantages, old and
reference log-probs (`_generate_and_score_completions`) and the loss (`compute_loss`). Only sampling is replaced.

The batch (completions.json) was drawn from smollm2-q4 at temperature 1: three prompts, four completions each, 3 to 16
tokens long, seven of them cut at 16. SmolLM2's padding token is its EOS, so padding looks like an end.

What is set to the same value on both sides: std epsilon 1e-4 and ddof 1 (both defaults), dr_grpo's budget (TRL takes
`max_completion_length`), `scale_rewards="none"` for dr_grpo (TRL's loss_type alone leaves the division by std in).

What differs by definition, and is tested as the relation that it is:

- rloo: TRL's ratio is that of the whole completion, Π_t π/π_old, clipped once; ours is one ratio a token, as in PPO. At
  π = π_old, and for completions of one token, both are the same. Elsewhere TRL's gradient is that of our on-policy rloo
  with each advantage times the completion's ratio, or times 0 where the clip binds.
- dapo: TRL divides by the tokens of the whole generation batch, scaled to one optimiser step; ours by the tokens behind
  the optimiser step. They are the same when a generation batch is one step, as here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import minibatch, relative_error
from torch import Tensor, nn

from logpi import losses
from logpi.algorithms import ALGORITHMS, Algorithm
from logpi.batching import micro_batches
from logpi.learner import Learner
from logpi.policies.causal_lm import CausalLM
from logpi.policies.model_folder import find
from logpi.trajectory import Trajectory, make_batch

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402  # comes with trl

TOLERANCE = 1e-4
BUDGET = 16
BETA = 0.1
POLICY, REFERENCE = 1, 2  # seeds of how far they moved from the weights that sampled
SMALL, LARGE = 0.02, 0.03  # by how much: parts of each matrix's standard deviation
REWARDS = [0.3, -1.2, 2.5, 0.7, 1.1, 0.0, -0.4, 0.25, 3.0, 1.75, -2.0, 0.6]

ROWS = {
    "grpo": ALGORITHMS["grpo"],
    "dapo": ALGORITHMS["dapo"],
    "dr_grpo": ALGORITHMS["dr_grpo"].with_options(budget=float(BUDGET)),
    "rloo": ALGORITHMS["rloo"],
}


# --- the batch -----------------------------------------------------------------------------------------------------


def completions(longest: int = BUDGET) -> list[tuple[list[int], list[int], bool]]:
    """Return (prompt, tokens, was it cut?) of each completion, cut to `longest` tokens."""
    prompts = json.loads(Path(__file__).with_name("completions.json").read_text())
    rows = [(p["prompt"], c["tokens"], c["truncated"]) for p in prompts for c in p["completions"]]
    return [(prompt, tokens[:longest], cut or len(tokens) > longest) for prompt, tokens, cut in rows]


def trajectories(policy: CausalLM, longest: int = BUDGET) -> list[Trajectory]:
    """Return them as the engine would, log-probs as `policy` gives them."""
    out = []
    for row, (prompt, tokens, cut) in enumerate(completions(longest)):
        rewards = torch.zeros(len(tokens), dtype=torch.float64)
        rewards[-1] = REWARDS[row]
        empty = torch.zeros(len(tokens))
        actions, inputs = torch.tensor(tokens), torch.tensor(prompt)
        out.append(Trajectory(row // 4, row % 4, row // 4, 0, actions, empty, empty, inputs, not cut, cut, rewards))
    batch = make_batch(out)
    with torch.no_grad():
        found = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs
    return [replace(t, behavior_log_probs=row[: len(t)]) for t, row in zip(out, found, strict=True)]


# --- weights -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def move(module: nn.Module, seed: int, scale: float) -> None:
    """Add keyed noise to every matrix: the same for logpi's and TRL's module, whose parameters have the same names."""
    draws = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(module.named_parameters()):
        if parameter.ndim == 2:
            parameter += scale * float(parameter.std()) * torch.randn(parameter.shape, generator=draws)


class Ours:
    """The policy, its start weights, and a reference that moved away from them."""

    def __init__(self, policy: CausalLM):
        self.policy = policy
        self.start = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
        self.reference = policy.frozen_copy()
        move(self.reference.module, REFERENCE, SMALL)

    @torch.no_grad()
    def reset(self) -> None:
        for name, parameter in self.policy.module.named_parameters():
            parameter.copy_(self.start[name])
            parameter.grad = None

    def learner(self, row: Algorithm) -> Learner:
        learner = Learner(self.policy, row, learning_rate=1e-3, micro_batch_tokens=100)
        learner.reference = self.reference if row.beta else None
        return learner

    def gradient(self, row: Algorithm, moved: float, longest: int = BUDGET) -> tuple[dict[str, Tensor], float]:
        """Return (gradient, fraction of clipped actions) after the policy moved away from where it sampled."""
        self.reset()
        learner = self.learner(row)
        batch = minibatch(learner, trajectories(self.policy, longest), several_updates=bool(moved))
        assert longest == 1 or len(list(micro_batches(batch, learner.micro_batch_tokens))) > 1
        if moved:
            move(self.policy.module, POLICY, moved)
        found = learner.backward(batch)
        return gradients(self.policy.module), found.clip_fraction


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    from logpi.policies.loading import load_causal_lm

    yield Ours(load_causal_lm("smollm2-q4", dtype="float32"))


# --- TRL -----------------------------------------------------------------------------------------------------------


def trainer(loss: str, beta: float, moved: float, folder: Path, longest: int = BUDGET, **options: Any) -> Any:
    """Return TRL's trainer on the same weights, with our completions in place of its sampling."""
    rows = completions(longest)
    settings: dict[str, Any] = dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        num_generations=4,
        max_completion_length=BUDGET,
        temperature=1.0,
        beta=beta,
        num_iterations=2 if moved else 1,  # 2: TRL keeps old log-probs
        model_init_kwargs={"dtype": "float32"},
    )
    if loss == "rloo":
        make, config = trl.RLOOTrainer, trl.RLOOConfig(**settings | options)
    else:
        by_loss: dict[str, Any] = {"grpo": {}, "dapo": {"epsilon_high": 0.28}, "dr_grpo": {"scale_rewards": "none"}}[
            loss
        ]
        by_loss["use_bias_correction_kl"] = False
        make, config = trl.GRPOTrainer, trl.GRPOConfig(loss_type=loss, **settings | by_loss | options)
    model = str(find("smollm2-q4", weights=True).location)
    data = Dataset.from_list([{"prompt": "unused", "row": row} for row in range(len(rows))])
    out = make(model, reward_funcs=reward, args=config, train_dataset=data)
    prompts = [prompt for prompt, _, _ in rows]
    out._tokenize_prompts = lambda texts: (prompts, None, {})
    tokens = [tokens for _, tokens, _ in rows]
    out._generate_single_turn = lambda *_, **__: tokens if loss == "rloo" else (tokens, None)
    out.current_gradient_accumulation_steps = 1  # as `train` sets it
    out.model.train()
    return out


def reward(row: list[int], **_: Any) -> list[float]:
    return [REWARDS[r] for r in row]


def theirs(judge: Any, moved: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (gradient, its loss's inputs): TRL scores at the weights that sampled, and takes the loss after a move."""
    if judge.ref_model is not None:
        move(judge.ref_model, REFERENCE, SMALL)
    inputs = judge._generate_and_score_completions(list(judge.train_dataset))
    assert bool(moved) == ("old_per_token_logps" in inputs) or "old_logps" in inputs
    if moved:
        move(judge.model, POLICY, moved)
    judge.compute_loss(judge.model, inputs).backward()
    return gradients(judge.model), inputs


# --- the comparison ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("moved", [0.0, LARGE], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_the_gradient_is_trls(ours: Ours, tmp_path: Path, loss: str, moved: float, beta: float) -> None:
    expected, _ = theirs(trainer(loss, beta, moved, tmp_path), moved)
    found, clipped = ours.gradient(replace(ROWS[loss], beta=beta), moved)
    error = relative_error(found, expected)
    print(f"{loss} beta={beta} moved={moved}: {error:.1e}, clipped {clipped:.0%}")
    assert error <= TOLERANCE
    assert 0.05 < clipped < 0.9 if moved else clipped == 0


def test_trls_own_kl_has_the_gradient_of_k2(ours: Ours, tmp_path: Path) -> None:
    """r·k3 with r = π/π_old and q = log π_ref − log π: at r = 1 its gradient is (k3 + 1 − exp q) ∇log π = −q ∇log π."""
    expected, _ = theirs(trainer("grpo", BETA, 0.0, tmp_path, use_bias_correction_kl=True), 0.0)
    plain, _ = ours.gradient(replace(ROWS["grpo"], beta=BETA), 0.0)
    assert relative_error(plain, expected) > 0.01
    ours.reset()
    with_reference = ours.learner(replace(ROWS["grpo"], beta=BETA))
    batch = minibatch(with_reference, trajectories(ours.policy))
    penalty = losses.kl_k1(batch.behavior_log_probs, batch.reference_log_probs) * batch.mask
    ours.learner(ROWS["grpo"]).backward(replace(batch, advantages=batch.advantages - BETA * penalty))
    error = relative_error(gradients(ours.policy.module), expected)
    print(f"grpo, k2 for TRL's corrected k3: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_the_on_policy_gradient_of_rloo_is_trls(ours: Ours, tmp_path: Path, beta: float) -> None:
    expected, _ = theirs(trainer("rloo", beta, 0.0, tmp_path), 0.0)
    found, _ = ours.gradient(replace(ROWS["rloo"], beta=beta), 0.0)
    error = relative_error(found, expected)
    print(f"rloo beta={beta} on policy: {error:.1e}")
    assert error <= TOLERANCE


def test_for_single_tokens_the_off_policy_gradient_of_rloo_is_trls(ours: Ours, tmp_path: Path) -> None:
    expected, _ = theirs(trainer("rloo", BETA, LARGE, tmp_path, longest=1), LARGE)
    found, clipped = ours.gradient(replace(ROWS["rloo"], beta=BETA), LARGE, longest=1)
    error = relative_error(found, expected)
    print(f"rloo, one token, off policy: {error:.1e}, clipped {clipped:.0%}")
    assert error <= TOLERANCE and 0 < clipped < 1


def test_the_off_policy_gradient_of_rloo_differs_from_trls_by_the_completions_ratio(ours: Ours, tmp_path: Path) -> None:
    """TRL's is Σ_i w_i A_i ∇log π(y_i)/B with w_i = s_i = Π_t π/π_old, 0 where the clip binds; ours weighs each token's
    score with its own ratio. So ours on-policy, advantages times w, is TRL's. On four tokens: s sums the rounding of
    its log-probs.
    """
    moved, longest = 0.01, 4
    expected, inputs = theirs(trainer("rloo", BETA, moved, tmp_path, longest), moved)
    row = replace(ROWS["rloo"], beta=BETA)
    plain, _ = ours.gradient(row, moved, longest)
    assert relative_error(plain, expected) > 0.01

    ours.reset()
    learner = ours.learner(row)
    batch = minibatch(learner, trajectories(ours.policy, longest), several_updates=False)
    assert torch.allclose(batch.advantages[:, 0].float(), inputs["advantages"], rtol=1e-4, atol=1e-5)
    move(ours.policy.module, POLICY, moved)
    with torch.no_grad():
        now = ours.policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs
    ratio = torch.exp((now - batch.behavior_log_probs).sum(1, keepdim=True).double())
    clipped = torch.where(batch.advantages > 0, ratio > 1.2, ratio < 0.8)
    assert 0 < int(clipped[:, 0].sum()) < len(batch)
    learner.backward(replace(batch, advantages=batch.advantages * ratio * ~clipped))
    error = relative_error(gradients(ours.policy.module), expected)
    print(f"rloo times the completion's ratio: {error:.1e}, clipped {int(clipped[:, 0].sum())} of {len(batch)}")
    assert error <= TOLERANCE

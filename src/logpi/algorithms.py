"""Algorithms are rows of a table: advantage estimator × surrogate × reduction × KL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from logpi import estimators, losses
from logpi.errors import InputError, did_you_mean
from logpi.masking import masked_mean
from logpi.trajectory import Batch

# Where a KL penalty against the frozen starting policy enters, when beta > 0.
KL_PLACES = ("k1_in_reward", "k3_in_loss")


@dataclass(frozen=True)
class Algorithm:
    """One row: what turns rewards into advantages, and advantages into a loss.

    `options` are the hyper-parameters that the row's functions name in their signatures; `beta` weighs the KL term.
    """

    name: str
    advantage: Callable[..., Tensor]
    surrogate: Callable[..., Tensor]
    reduction: Callable[[Tensor], Tensor]
    kl: str
    source: str
    options: Mapping[str, float] = field(default_factory=dict)
    beta: float = 0.0
    uses_groups: bool = False
    uses_values: bool = False

    def option_names(self) -> set[str]:
        """Return the options that some cell of this row reads."""
        return {
            name
            for cell in (self.advantage, self.surrogate)
            for name, parameter in inspect.signature(cell).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def options_of(self, cell: Callable) -> dict[str, float]:
        """Return the options that `cell` takes."""
        return {k: v for k, v in self.options.items() if k in inspect.signature(cell).parameters}

    def with_options(self, **options: float | None) -> Algorithm:
        """Return this row with other options; None leaves one as it is. Raises InputError for one it never reads."""
        given = {name: value for name, value in options.items() if value is not None}
        beta = given.pop("beta", self.beta)
        for name in given:
            if name not in self.option_names():
                known = self.option_names() | {"beta"}
                raise InputError(f'algorithm "{self.name}" has no option "{name}".{did_you_mean(name, known)}')
        return replace(self, options={**self.options, **given}, beta=beta)

    def formula(self) -> str:
        """Return the objective in one line, for the run's record and its first screen."""
        values = {
            name: parameter.default
            for cell in (self.advantage, self.surrogate)
            for name, parameter in inspect.signature(cell).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        } | dict(self.options)
        shown = ", ".join(f"{k}={v}" for k, v in sorted(values.items()) if v is not None)
        text = f"maximise Σ_t w_t·{_FORMULAS[self.surrogate.__name__]}, {_FORMULAS[self.advantage.__name__]}, "
        text += _FORMULAS[self.reduction.__name__]
        if self.beta:
            text += f"; KL: {self.kl}, beta={self.beta}"
        return text + (f"; {shown}" if shown else "")


_FORMULAS = {
    "score_function": "log π·A",
    "importance_ratio": "(π/π_old)·A",
    "clipped_ratio": "min(r·A, clip(r, 1−ε, 1+ε_high)·A), r = π/π_old",
    "total_reward": "A_t = R",
    "reward_to_go": "A_t = Σ_{k≥t} γ^{k−t} r_k",
    "reward_to_go_leave_one_out": "A_t = G_t − mean of the others' G_t",
    "leave_one_out": "A = R_i − mean of the others' R",
    "group_standardised": "A = (R_i − mean R)/(std R + ε_std)",
    "generalised_advantage": "A_t = Σ_l (γλ)^l δ_{t+l}",
    "per_trajectory": "w = 1/trajectories",
    "per_token": "w = 1/all tokens",
    "per_sequence": "w = 1/(trajectories·own length)",
}

_ROWS = (
    Algorithm(
        "reinforce",
        estimators.total_reward,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Williams 1992, Machine Learning 8:229-256",
    ),
    Algorithm(
        "reinforce_to_go",
        estimators.reward_to_go,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Williams 1992; reward-to-go as in Sutton et al. 2000",
    ),
    Algorithm(
        "reinforce_baseline",
        estimators.reward_to_go_leave_one_out,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Williams 1992, with the others' mean reward-to-go as the baseline",
        uses_groups=True,
    ),
    Algorithm(
        "rloo",
        estimators.leave_one_out,
        losses.clipped_ratio,
        losses.per_trajectory,
        "k1_in_reward",
        "Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740",
        uses_groups=True,
    ),
    Algorithm(
        "grpo",
        estimators.group_standardised,
        losses.clipped_ratio,
        losses.per_sequence,
        "k3_in_loss",
        "Shao et al. 2024, arXiv 2402.03300",
        uses_groups=True,
    ),
    Algorithm(
        "ppo",
        estimators.generalised_advantage,
        losses.clipped_ratio,
        losses.per_token,
        "k1_in_reward",
        "Schulman et al. 2017, arXiv 1707.06347",
        uses_values=True,
    ),
)

ALGORITHMS: dict[str, Algorithm] = {row.name: row for row in _ROWS}


def get_algorithm(name: str) -> Algorithm:
    """Return the row called `name`."""
    if name not in ALGORITHMS:
        raise InputError(f'unknown algorithm "{name}".{did_you_mean(name, ALGORITHMS)}')
    return ALGORITHMS[name]


def assign_credit(algorithm: Algorithm, batch: Batch, *, standardise: bool = False) -> Batch:
    """Fill in advantages, value targets (advantage + value) and the KL penalty in the reward, where the row has them.

    `standardise` divides centred advantages by their standard deviation over actions: a named bias, off by default.
    """
    rewards = batch.rewards
    if algorithm.beta and algorithm.kl == "k1_in_reward":
        assert batch.reference_log_probs is not None
        penalty = losses.kl_k1(batch.behavior_log_probs, batch.reference_log_probs)
        rewards = torch.where(batch.mask, rewards - algorithm.beta * penalty, rewards)
    advantages = algorithm.advantage(
        rewards,
        batch.mask,
        batch.group,
        batch.values,
        batch.final_values,
        **algorithm.options_of(algorithm.advantage),
    )
    value_targets = advantages + batch.values if algorithm.uses_values and batch.values is not None else None
    if standardise:
        advantages = standardise_over_actions(advantages, batch.mask)
    return replace(batch, advantages=advantages, value_targets=value_targets)


def standardise_over_actions(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return (A − mean)/(std + 1e-8) over the true entries of `mask`, zeros on padding."""
    mean = masked_mean(advantages, mask)
    variance = masked_mean((advantages - mean) ** 2, mask)
    return torch.where(mask, (advantages - mean) / (variance.sqrt() + 1e-8), torch.zeros_like(advantages))

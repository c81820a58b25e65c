"""Algorithms are rows of a table: advantage estimator × surrogate × reduction × KL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torch import Tensor

from logpi import estimators, losses
from logpi.errors import InputError, did_you_mean
from logpi.formulas import formula_of

# Where a KL penalty against the frozen starting policy enters, when beta > 0, and what its gradient then is.
KL_PLACES = {
    "k1_in_reward": "that of KL(π‖π_ref) of whole trajectories",
    "k2_in_reward": "no KL's",
    "k3_in_reward": "no KL's",
    "k1_in_loss": "zero on average",
    "k2_in_loss": "that of KL(π‖π_ref) in each visited state: partial",
    "k3_in_loss": "that of KL(π_ref‖π) in each visited state: partial",
    "k2_of_sequence_in_loss": "that of KL(π‖π_ref) of whole trajectories, with weights 1/trajectories",
    "exact_in_loss": "that of KL(π‖π_ref) in each visited state: partial; over all actions, not the sampled one",
    "exact_in_reward_and_loss": "that of KL(π‖π_ref) of whole trajectories, with weights 1/trajectories; over all "
    "actions, not the sampled one",
}
# What an advantage may ask for besides rewards and values, as keyword arguments without a default.
DATA = ("actions", "log_probs", "log_ratios", "given", "turns")


@cache
def parameters_of(cell: Callable) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a row's function by name."""
    return inspect.signature(cell).parameters


@dataclass(frozen=True)
class Algorithm:
    """One row: what turns rewards into advantages, and advantages into a loss.

    `options` are the hyper-parameters that the row's functions name in their signatures; `beta` weighs the KL term.
    """

    name: str
    advantage: Callable[..., Tensor]
    surrogate: Callable[..., Tensor]
    reduction: Callable[..., Tensor]
    kl: str
    source: str
    options: Mapping[str, float] = field(default_factory=dict)
    beta: float = 0.0
    uses_groups: bool = False  # compares trajectories of one prompt: needs at least 2
    uses_values: bool = False
    uses_batch: bool = False  # an advantage depends on other prompts' rewards too
    uses_solutions: bool = False  # begins completions with the task's solutions
    baseline: str = ""  # known before a trajectory is sampled: "greedy" completion's reward, or "moving" mean
    value_target: Callable[..., Tensor] | None = None  # None: advantage + value
    importance: Mapping[str, Any] = field(default_factory=dict)  # of losses.importance_weights; empty: none
    entropy_coef: float = 0.0  # of the entropy of each action's distribution, in the loss: partial, see docs
    entropy_in_reward: float = 0.0  # of −log π in the reward: the exact gradient of the sequence's entropy
    deviations: str = ""  # from the source

    def option_names(self) -> set[str]:
        """Return the options that some cell of this row reads."""
        return {
            name
            for cell in self.cells
            for name, parameter in parameters_of(cell).items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in DATA
        }

    @property
    def kl_in_loss(self) -> bool:
        """Whether a KL term is added to the loss."""
        return bool(self.beta) and self.kl.endswith("_loss")

    @property
    def kl_in_reward(self) -> bool:
        """Whether a KL term is taken off the reward."""
        return bool(self.beta) and "_in_reward" in self.kl

    @property
    def kl_is_exact(self) -> bool:
        """Whether the KL of each state's whole distribution is needed, and with it the reference's states."""
        return bool(self.beta) and self.kl.startswith("exact_")

    def kl_terms(self, log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
        """Return the row's estimate of KL(π ‖ π_ref) per action, [batch, time]; an exact one comes from the policy."""
        name = self.kl.rsplit("_in_", 1)[0]
        if name == "k2_of_sequence":
            return losses.kl_k2_of_sequence(log_probs, reference_log_probs, mask)
        return {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}[name](log_probs, reference_log_probs)

    @property
    def reads_ratios(self) -> bool:
        """Whether the row corrects for samples of another policy."""
        return bool(self.importance) or "log_ratios" in parameters_of(self.advantage)

    @property
    def cells(self) -> tuple[Callable, ...]:
        """The functions of this row."""
        return self.advantage, self.surrogate, self.reduction

    def token_weights(self, mask: Tensor) -> Tensor:
        """Return what each action counts in the loss; `mask` is that of all trajectories behind one optimiser step."""
        return self.reduction(mask, **self.options_of(self.reduction))

    def options_of(self, cell: Callable) -> dict[str, float]:
        """Return the options that `cell` takes."""
        return {k: v for k, v in self.options.items() if k in parameters_of(cell)}

    def with_options(self, **options: float | None) -> Algorithm:
        """Return this row with other options; None leaves one as it is. Raises InputError for one it never reads."""
        given = {name: value for name, value in options.items() if value is not None}
        beta = given.pop("beta", self.beta)
        for name in given:
            if name not in self.option_names():
                known = self.option_names() | {"beta"}
                raise InputError(f'algorithm "{self.name}" has no option "{name}".{did_you_mean(name, known)}')
        return replace(self, options={**self.options, **given}, beta=beta)

    def resolved_options(self) -> dict[str, float | None]:
        """Return every option that some cell reads with the value that it has: the row's, else the cell's default."""
        defaults = {
            name: parameter.default
            for cell in self.cells
            for name, parameter in parameters_of(cell).items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in DATA
        }
        return defaults | dict(self.options)

    def formula(self) -> str:
        """Return the objective in one line, for the run's record and its first screen."""
        shown = ", ".join(f"{k}={v}" for k, v in sorted(self.resolved_options().items()) if v is not None)
        text = f"maximise Σ_t w_t·{formula_of(self.surrogate)}, {formula_of(self.advantage)}"
        text += f", {formula_of(self.reduction)}"
        if self.importance:
            text += f"; × sg(w), w = π/μ of the {self.importance['level']}, " + ", ".join(
                f"{k}={v}" for k, v in self.importance.items() if k != "level" and v is not None
            )
        if self.beta:
            text += f"; KL: {self.kl}, beta={self.beta}"
        if self.entropy_coef:
            text += f"; + {self.entropy_coef}·entropy of each action's distribution"
        if self.entropy_in_reward:
            text += f"; reward − {self.entropy_in_reward}·log π"
        return text + (f"; {shown}" if shown else "")


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
        "reinforce_moving",
        estimators.reward_minus_baseline,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Williams 1992: reinforcement comparison",
        baseline="moving",
    ),
    Algorithm(
        "remax",
        estimators.reward_minus_baseline,
        losses.clipped_ratio,
        losses.per_trajectory,
        "k1_in_reward",
        "Rennie et al. 2017, arXiv 1612.00563 (self-critical); Li et al. 2023, arXiv 2310.10505",
        baseline="greedy",
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
        "dr_grpo",
        estimators.group_centred,
        losses.clipped_ratio,
        losses.per_budget,
        "k3_in_loss",
        "Liu et al. 2025, arXiv 2503.20783",
        uses_groups=True,
    ),
    Algorithm(
        "dapo",
        estimators.group_standardised,
        losses.clipped_ratio,
        losses.per_token,
        "k3_in_loss",
        "Yu et al. 2025, arXiv 2503.14476",
        options={"epsilon": 0.2, "epsilon_high": 0.28},
        uses_groups=True,
        deviations="dynamic sampling and overlong punishment are options of rollout and reward",
    ),
    Algorithm(
        "opo",
        estimators.length_weighted_leave_one_out,
        losses.clipped_ratio,
        losses.per_trajectory,
        "k1_in_reward",
        "Hao et al. 2025, arXiv 2505.23585",
        uses_groups=True,
        deviations="the baseline leaves the own reward out, which makes it unbiased",
    ),
    Algorithm(
        "maxrl",
        estimators.relative_to_mean,
        losses.clipped_ratio,
        losses.per_trajectory,
        "k1_in_reward",
        "Tajwar et al. 2026, arXiv 2602.02710",
        uses_groups=True,
    ),
    Algorithm(
        "reinforce_pp",
        estimators.batch_standardised,
        losses.clipped_ratio,
        losses.per_token,
        "k1_in_reward",
        "Hu et al. 2025, arXiv 2501.03262",
        uses_batch=True,
        deviations="rewards are standardised over trajectories, not over tokens",
    ),
    Algorithm(
        "reinforce_pp_baseline",
        estimators.group_centred_batch_standardised,
        losses.clipped_ratio,
        losses.per_token,
        "k3_in_loss",
        "Hu et al. 2025, arXiv 2501.03262",
        uses_groups=True,
        uses_batch=True,
        deviations="rewards are standardised over trajectories, not over tokens",
    ),
    Algorithm(
        "gspo",
        estimators.group_standardised,
        losses.sequence_ratio,
        losses.per_sequence,
        "k3_in_loss",
        "Zheng et al. 2025, arXiv 2507.18071",
        uses_groups=True,
    ),
    Algorithm(
        "cispo",
        estimators.group_standardised,
        losses.weighted_score_function,
        losses.per_token,
        "k3_in_loss",
        "MiniMax 2025, arXiv 2506.13585",
        uses_groups=True,
        deviations="no lower clip, and 5 as the upper one (Khatri et al. 2025, ScaleRL)",
    ),
    Algorithm(
        "minimum_risk",
        estimators.minimum_risk,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Shen et al. 2016, arXiv 1512.02433",
        uses_groups=True,
        deviations="the gradient at the sampling policy, as an advantage",
    ),
    Algorithm(
        "mixer",
        estimators.mixed_likelihood,
        losses.score_function,
        losses.per_trajectory,
        "k1_in_reward",
        "Ranzato et al. 2016, arXiv 1511.06732",
        uses_groups=True,
        uses_solutions=True,
        deviations="the others' mean reward is the baseline, not a regression; the number of given tokens falls in a "
        "line, by step; a solution's last token is always drawn",
    ),
    Algorithm(
        "v_trace",
        estimators.v_trace,
        losses.score_function,
        losses.per_token,
        "k1_in_reward",
        "Espeholt et al. 2018, arXiv 1802.01561",
        uses_values=True,
        value_target=estimators.v_trace_targets,
    ),
    Algorithm(
        "a2c",
        estimators.n_step_advantage,
        losses.score_function,
        losses.per_token,
        "k1_in_reward",
        "Mnih et al. 2016, arXiv 1602.01783",
        uses_values=True,
        deviations="synchronous, on whole trajectories",
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
    Algorithm(
        "ppo_by_turn",
        estimators.generalised_advantage_by_turn,
        losses.clipped_ratio,
        losses.per_token,
        "k1_in_reward",
        "Schulman et al. 2017, arXiv 1707.06347, each turn one action",
        uses_values=True,
        value_target=estimators.turn_targets,
    ),
)

ALGORITHMS: dict[str, Algorithm] = {row.name: row for row in _ROWS}


def get_algorithm(name: str) -> Algorithm:
    """Return the row called `name`."""
    if name not in ALGORITHMS:
        raise InputError(f'unknown algorithm "{name}".{did_you_mean(name, ALGORITHMS)}')
    return ALGORITHMS[name]


def register(row: Algorithm) -> None:
    """Add a row of one's own. Raises InputError for a name that is taken, or a cell that can't be called as the others
    are: options are keyword-only arguments with a default."""
    if row.name in ALGORITHMS:
        raise InputError(f'algorithm "{row.name}" exists already; name yours otherwise')
    wanted = (("advantage", row.advantage, 5), ("surrogate", row.surrogate, 4), ("reduction", row.reduction, 1))
    for what, cell, count in wanted:
        parameters = parameters_of(cell).values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(positional) != count:
            like = ", ".join(parameters_of(getattr(ALGORITHMS["rloo"], what)))
            raise InputError(
                f'algorithm "{row.name}": its {what} takes ({", ".join(positional)}), it must take ({like})'
            )
        needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        if free := [name for name in needed if what != "advantage" or name not in DATA]:
            raise InputError(
                f'algorithm "{row.name}": the option "{free[0]}" of its {what} has no default; give it one'
            )
    if row.kl not in KL_PLACES:
        raise InputError(f'algorithm "{row.name}": kl="{row.kl}".{did_you_mean(row.kl, KL_PLACES)}')
    ALGORITHMS[row.name] = row

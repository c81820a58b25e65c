"""What a run maximises, whole: every cell of its row, every option with its value, and what differs from the row."""

from __future__ import annotations

from typing import Any

from logpi.algorithms import ALGORITHMS, KL_PLACES, Algorithm
from logpi.config import Config
from logpi.formulas import formula_of

# Where the ratio (or the weight) is cut, of surrogates that cut it: (low, high) from ε and ε_high.
_BOUNDS = {
    "clipped_ratio": lambda low, high: (1 - low, 1 + high),
    "sequence_ratio": lambda low, high: (1 - low, 1 + high),
    "weighted_score_function": lambda low, high: (None, high),
}


TRANSFORM = {"temperature", "top_k", "top_p", "min_p"}


def objective(algorithm: Algorithm, config: Config) -> dict[str, Any]:
    """Return the effective objective for the record: the short line, and `objective_details`."""
    dense = "; r_t = R(y_1..y_t) − R(y_1..y_t−1)" if config.reward.dense and config.demonstrated is None else ""
    return {"objective": algorithm.formula() + dense, "objective_details": objective_details(algorithm, config)}


def objective_details(algorithm: Algorithm, config: Config) -> dict[str, Any]:
    """Return the effective objective as plain data: `algorithm` is the row with the run's options in it.

    `clip` is None where the surrogate cuts nothing (or is one of your own), a bound None where there is none.
    `set_otherwise` names the options that are not the row's own, each with both values.
    """
    if config.demonstrated is not None:
        cells = {"advantage": algorithm.advantage, "surrogate": algorithm.surrogate, "reduction": algorithm.reduction}
        named = {name: _cell(cell) for name, cell in cells.items()}
        batch_size = config.demonstrated.batch_size
        return {"algorithm": algorithm.name, **named, "batch_size": batch_size, "source": algorithm.source}
    choice = config.algorithm
    updates = choice.updates_per_rollout * choice.num_minibatches
    language = config.task is not None
    return {
        "algorithm": algorithm.name,
        "advantage": _cell(algorithm.advantage),
        "surrogate": _cell(algorithm.surrogate),
        "reduction": _cell(algorithm.reduction) | {"denominator_over": "all trajectories of one optimiser step"},
        "clip": _clip(algorithm),
        "clip_can_bind": updates > 1,  # before the first update the ratio is 1
        "kl": {
            "place": algorithm.kl,
            "beta": algorithm.beta,
            "gradient": KL_PLACES[algorithm.kl],
            "against": "the policy that training began with",
        },
        "options": dict(sorted(algorithm.resolved_options().items())),
        "set_otherwise": _set_otherwise(algorithm),
        "standardise_advantages": choice.standardise_advantages,
        "updates_per_rollout": choice.updates_per_rollout,
        "num_minibatches": choice.num_minibatches,
        "value_coef": choice.value_coef if algorithm.uses_values else None,
        "num_prompts": config.rollout.num_prompts if language else 1,
        "num_generations": config.rollout.num_generations,
        "importance": dict(algorithm.importance) or None,
        "entropy": {"in_loss": algorithm.entropy_coef, "in_reward": algorithm.entropy_in_reward},
        "policy_transform": config.policy.model_dump(include=TRANSFORM) if language else None,
        "num_spare_prompts": config.rollout.num_spare_prompts,
        "solution_tokens": config.rollout.solution_tokens,
        "upsampling": config.rollout.upsampling,
        "exploration_epsilon": config.rollout.exploration_epsilon,
        "dense_reward": config.reward.dense if language else None,
        "overlong_tokens": config.reward.overlong_tokens,
        "truncated": config.reward.truncated if language else None,
        "max_completion_length": config.rollout.max_completion_length if language else None,
        "source": algorithm.source,
        "deviations": algorithm.deviations,
    }


def _cell(cell: Any) -> dict[str, str]:
    return {"name": cell.__name__, "formula": formula_of(cell)}


def _clip(algorithm: Algorithm) -> dict[str, float | None] | None:
    bounds = _BOUNDS.get(algorithm.surrogate.__name__)
    if bounds is None:
        return None
    options = algorithm.resolved_options()
    low, high = options.get("epsilon"), options.get("epsilon_high")
    found = bounds(low, low if high is None else high)
    return dict(zip(("low", "high"), found))


def _set_otherwise(algorithm: Algorithm) -> dict[str, dict[str, float | None]]:
    row = ALGORITHMS.get(algorithm.name, algorithm)
    own, now = (a.resolved_options() | {"beta": a.beta} for a in (row, algorithm))
    return {name: {"row": own[name], "run": now[name]} for name in sorted(now) if now[name] != own[name]}

"""A run, described: frozen sections, checked at birth, without torch. An unknown key is an error."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from logpi.errors import InputError, did_you_mean
from logpi.sections import CheckpointConfig, Lora, PretrainConfig, RewardConfig, RolloutConfig, Section, SftConfig

# The algorithms that need more than one completion a prompt; the table itself needs torch, this module must not.
COMPARE_WITHIN_GROUPS = (
    "reinforce_baseline", "rloo", "grpo", "dr_grpo", "dapo", "opo", "maxrl", "reinforce_pp_baseline", "gspo", "cispo",
    "minimum_risk", "mixer",
)  # fmt: skip


class PolicyConfig(Section):
    """Who acts."""

    kind: Literal["causal_lm", "encoder", "mlp"] = "causal_lm"
    """encoder: a BERT that tags the words of a sentence, or predicts masked tokens."""
    model: str | None = None
    """A folder, a hub id, "smollm2" or "smollm2-q4" (not of an mlp)."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of the matrix products; weights stay float32 (float64 when asked). auto: bfloat16 where the processor has it."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits. This and the next three change the policy, in sampling and in learning alike; the held-out
    score is that of the likeliest tokens, whatever they are."""
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens, and those that are as likely as the last of them; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of what top_k leaves, only the likeliest tokens whose mass reaches this; 1: all."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Only tokens of at least min_p times the likeliest one's probability; 0: all."""
    lora: Lora | None = None
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Of the mlp."""

    def transformed(self, *names: str) -> str:
        """Return which of these options (temperature, top_k, top_p, min_p) change the policy, as text; "" if none."""
        fields, names = type(self).model_fields, names or ("temperature", "top_k", "top_p", "min_p")
        values = {name: getattr(self, name) for name in names}
        return ", ".join(f"policy.{n}={v}" for n, v in values.items() if v != fields[n].default)


# The options of an algorithm that its row's functions take.
ROW_OPTIONS = {
    "gamma", "gae_lambda", "epsilon", "epsilon_high", "std_epsilon", "n_steps", "budget", "beta", "sharpness",
    "rho_cap", "c_cap",
}  # fmt: skip


class AlgorithmConfig(Section):
    """A row of the table and its options; None leaves the row's own value."""

    name: str = "rloo"
    gamma: float | None = Field(default=None, gt=0, le=1)
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    epsilon: float | None = Field(default=None, gt=0)
    epsilon_high: float | None = Field(default=None, gt=0)
    std_epsilon: float | None = Field(default=None, ge=0)
    n_steps: int | None = Field(default=None, ge=1)
    """Of a2c: rewards that are summed before the value function takes over."""
    budget: float | None = Field(default=None, gt=0)
    """Of dr_grpo: the constant that it divides by; None: rollout.max_completion_length."""
    beta: float | None = Field(default=None, ge=0)
    """Weight of the KL penalty against the starting policy."""
    kl: (
        Literal[
            "k1_in_reward", "k2_in_reward", "k3_in_reward",
            "k1_in_loss", "k2_in_loss", "k3_in_loss", "k2_of_sequence_in_loss",
            "exact_in_loss", "exact_in_reward_and_loss",
        ]
        | None
    ) = None  # fmt: skip
    """Which estimate of it, and where; None: the row's. exact: of the whole distribution in each state, no estimate."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Of each action's entropy, in the loss: partial, it ignores which states the actions lead to."""
    entropy_in_reward: float = Field(default=0.0, ge=0)
    """Of −log π, in the reward: with an exact advantage the exact gradient of the whole trajectory's entropy."""
    importance: Literal["token", "sequence", "prefix"] | None = None
    """Weight actions with π/μ where the sampler μ is not the learner π (measured mode); None: no correction."""
    importance_cap: float | None = Field(default=2.0, gt=0)
    """Largest weight; null: none."""
    importance_floor: float = Field(default=0.0, ge=0)
    importance_masked: bool = False
    """Weights beyond cap and floor become 0, not the bound."""
    sharpness: float | None = Field(default=None, gt=0)
    """Of minimum_risk: α in Q ∝ π^α."""
    rho_cap: float | None = Field(default=None, gt=0)
    """Of v_trace: ρ̄."""
    c_cap: float | None = Field(default=None, gt=0)
    """Of v_trace: c̄."""
    options: dict[str, float] = Field(default={})
    """Of a row of one's own: what its functions take besides the options above."""
    standardise_advantages: bool = False
    """Divide by the batch's standard deviation after centring: a bias, of use with a value function."""
    updates_per_rollout: int = Field(default=1, ge=1)
    num_minibatches: int = Field(default=1, ge=1)
    """Optimiser steps a pass over the rollout; whole groups or episodes stay together."""
    value_coef: float = Field(default=0.5, ge=0)

    def terms(self) -> dict[str, Any]:
        """Return what is added to a row's loss or reward, in the row's names."""
        bounds = {"cap": self.importance_cap, "floor": self.importance_floor, "masked": self.importance_masked}
        importance = {} if self.importance is None else {"level": self.importance, **bounds}
        entropy = {"entropy_coef": self.entropy_coef, "entropy_in_reward": self.entropy_in_reward}
        return {"importance": importance, **entropy}


class LearnerConfig(Section):
    """One optimiser step."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Where none is given: 1e-5 for all weights, 1e-4 for an adapter (policy.lora)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine: down to 0 at max_steps."""
    warmup_steps: int = Field(default=0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    micro_batch_tokens: int = Field(default=1024, ge=1)
    """Tokens (prompts once a group) in one forward and backward: memory, not results."""
    max_skipped_steps: int = Field(default=3, ge=1)
    """Stop after this many steps in a row with a loss or gradient that is not finite; fewer are skipped."""


class EvaluationConfig(Section):
    """When and how the held-out score is taken."""

    every_steps: int | None = Field(default=10, ge=1)
    every_actions: int | None = Field(default=None, ge=1)
    """Check after each multiple of this many sampled actions (environments)."""
    num_problems: int | None = Field(default=None, ge=1)
    """Of the held-out ones, the first so many; None: all."""
    num_episodes: int = Field(default=100, ge=1)
    """Of an environment, at fixed seeds."""
    target_score: float | None = None
    """Stop when the score holds this at `target_checks` checks in a row."""
    target_checks: int = Field(default=3, ge=1)
    full_report: bool = True
    """Before and after: entropy, distinct completions, few-shot prompts, KL on unrelated prompts, the task's probes."""


class Config(Section):
    """A whole run."""

    modules: tuple[str, ...] = ()
    """Python files that are imported first: they register algorithms of one's own."""
    recipe: str = Field(default="custom", max_length=100, pattern=r"^[^/\\\x00-\x1f\x7f]+$")
    """Names the run folder."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    max_steps: int = Field(default=100, ge=1)
    threads: int | None = Field(default=None, ge=1)
    """Of torch; None: the processor's cores."""
    device: Literal["cpu"] = "cpu"
    strict: bool = False
    """Stop at the first log-prob in which sampler and learner differ, be it by one bit."""
    task: dict[str, Any] | None = None
    """`name` and the task's own options."""
    environment: str | None = None
    """A Gymnasium environment's id."""
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sft: SftConfig | None = None
    """Of logpi sft."""
    pretrain: PretrainConfig | None = None
    """Of logpi pretrain."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_an_adapter(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        policy, learner = given.get("policy"), given.get("learner", {})
        if isinstance(policy, dict) and policy.get("lora") and isinstance(learner, dict):
            return given | {"learner": {"learning_rate": 1e-4} | learner}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if (self.task is None) == (self.environment is None):
            raise ValueError("give either a task (language) or an environment (control), not both and not neither")
        if self.task is not None and "name" not in self.task:
            raise ValueError('task has no "name"')
        if (self.policy.kind == "mlp") != (self.environment is not None):
            raise ValueError('policy.kind "causal_lm" and "encoder" go with a task, "mlp" with an environment')
        if self.policy.kind == "mlp" and self.policy.model:
            raise ValueError("policy.model names a language model: leave it out for an environment")
        if self.policy.kind == "mlp" and (changed := self.policy.transformed()):
            raise ValueError(f"{changed}: an mlp's actions are drawn from its softmax as it is; leave it out")
        if self.policy.kind == "encoder" and self.policy.lora is not None:
            raise ValueError("policy.lora: an encoder is trained whole; leave it out")
        if self.policy.kind != "mlp" and not self.policy.model and not self.begins_anew:
            raise ValueError('policy.model is missing: name a folder, a hub id or "smollm2-q4" (--model)')
        if self.demonstrated:
            self._check_demonstrated()
            return self
        length = self.rollout.max_completion_length
        if self.reward.overlong_tokens is not None and self.reward.overlong_tokens > length:
            raise ValueError(
                f"reward.overlong_tokens={self.reward.overlong_tokens} is over rollout.max_completion_length={length}"
            )
        if self.task is not None and self.rollout.exploration_epsilon:
            raise ValueError(
                f"rollout.exploration_epsilon={self.rollout.exploration_epsilon}: a token drawn uniformly from a whole "
                "vocabulary spoils its text; set it to 0, and raise policy.temperature to explore"
            )
        if self.rollout.upsampling and self.rollout.num_spare_prompts:
            raise ValueError(
                "rollout.upsampling weighs the prompts that it draws more often, and rollout.num_spare_prompts would "
                "leave some of them out; set one of the two to 0"
            )
        if self.environment is not None:
            for option, used in (
                ("rollout.num_spare_prompts", self.rollout.num_spare_prompts),
                ("rollout.upsampling", self.rollout.upsampling),
                ("rollout.solution_tokens", self.rollout.solution_tokens),
                ("reward.overlong_tokens", self.reward.overlong_tokens),
                ("reward.dense", self.reward.dense),
                ('reward.truncated="exclude"', self.reward.truncated == "exclude"),
                ('algorithm "remax"', self.algorithm.name == "remax"),
            ):
                if used:
                    raise ValueError(f"{option} is for language tasks; leave it out for an environment")
        if self.rollout.num_generations == 1 and self.algorithm.name in COMPARE_WITHIN_GROUPS:
            raise ValueError(
                f'rollout.num_generations=1: algorithm "{self.algorithm.name}" compares completions of one prompt and '
                'needs at least 2; raise num_generations or pick algorithm "reinforce"'
            )
        if problem := self.cut_problem(self.algorithm.beta or 0.0):
            raise ValueError(problem)
        return self

    @property
    def command(self) -> str:
        """Which command trains with this configuration."""
        return "sft" if self.sft is not None else "pretrain" if self.pretrain is not None else "train"

    @property
    def demonstrated(self) -> SftConfig | PretrainConfig | None:
        """The section of a warm start: trajectories are given, not sampled. None where a policy gradient trains."""
        return self.sft or self.pretrain

    @property
    def begins_anew(self) -> bool:
        """Whether the run makes its own network and tokenizer, from the task's training side."""
        return self.pretrain is not None or (self.sft is not None and self.sft.new is not None)

    def _check_demonstrated(self) -> None:
        """Raise ValueError for what a run by maximum likelihood does not read."""
        if self.sft is not None and self.pretrain is not None:
            raise ValueError("sft and pretrain are two commands: give one of the sections")
        if self.environment is not None:
            raise ValueError(f"{self.command} trains a language model: give a task, not an environment")
        read = {"rollout": {"max_completion_length", "max_rows"}, "algorithm": set(),
                "reward": {"timeout_seconds", "on_failure", "num_workers", "max_calls"}}  # fmt: skip
        for section, options in read.items():
            given = getattr(self, section)
            for name, field in type(given).model_fields.items():
                if name not in options and getattr(given, name) != field.default:
                    raise ValueError(f"{section}.{name}: {self.command} samples nothing to train on; leave it out")
        if self.strict:
            raise ValueError(f"strict compares sampled log-probs, and {self.command} samples nothing; leave it out")
        if changed := self.policy.transformed():
            raise ValueError(f"{changed}: {self.command} trains the model's own distribution; leave it out")
        if self.begins_anew and self.policy.lora is not None:
            raise ValueError(
                "policy.lora adapts weights that are trained already: a new network has none; leave it out"
            )
        if self.sft is not None and self.sft.new is not None and self.policy.model:
            raise ValueError("policy.model and sft.new both say what the run begins with: set one of them to null")
        if self.pretrain is not None and self.policy.model and self.pretrain.shape is not None:
            raise ValueError("policy.model and pretrain.shape both give the new network's shape: set one to null")

    def cut_problem(self, beta: float) -> str | None:
        """Return why tokens can't be cut from the policy in this run, if they are; `beta` is the algorithm's."""
        if not (cut := self.policy.transformed("top_k", "top_p", "min_p")):
            return None
        updates = self.algorithm.updates_per_rollout * self.algorithm.num_minibatches
        if updates > 1:
            return (
                f"{cut} with {updates} updates a rollout (algorithm.updates_per_rollout × num_minibatches): an update "
                "moves the edge of the tokens that are kept, and the next one's ratios would compare distributions "
                "over different tokens; set both to 1, or turn top_k, top_p and min_p off"
            )
        if beta:
            return (
                f"{cut} with algorithm.beta={beta}: a token that the policy keeps can be one that the reference cuts, "
                "and their KL divergence is then infinite; set beta to 0, or turn top_k, top_p and min_p off"
            )
        return None

    def fingerprint(self) -> str:
        """Return 8 hex digits of what determines the run, step count apart: the same command means the same folder."""
        content = {k: v for k, v in self.plain().items() if k not in ("max_steps", "strict", "checkpoint")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def journal_key(self) -> str:
        """Return the hash of what determines a step, step count included: a schedule may depend on it."""
        return _digest({k: v for k, v in self.plain().items() if k not in ("strict", "checkpoint")})

    def plain(self) -> dict[str, Any]:
        """Return the configuration as JSON data: functions by their names, data given in Python by its hash."""
        return _plain(self.model_dump(mode="python"))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        rows = [_plain(v) for v in value]
        return rows if len(rows) <= 8 else f"{len(rows)} rows, sha256 {_digest(rows)}"
    if hasattr(value, "column_names") and hasattr(value, "__getitem__"):  # a Hugging Face dataset
        return _plain([value[i] for i in range(len(value))])
    return getattr(value, "__qualname__", type(value).__name__)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file. Raises InputError with file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with nested `changes` on top."""
    out = dict(base)
    for key, value in changes.items():
        below = out.get(key)
        out[key] = merge(below or {}, value) if isinstance(value, Mapping) else value
    return out


def make_config(values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Check nested values and return the run's configuration. Raises InputError naming each key and its remedy."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise InputError("\n".join(_explain(source, problem) for problem in error.errors())) from None


def _explain(source: str, problem: Any) -> str:
    """Return one line for one of pydantic's findings."""
    keys = [str(part) for part in problem["loc"]]
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        section: Any = Config
        for key in keys[:-1]:
            annotation = section.model_fields[key].annotation
            candidates = (annotation, *getattr(annotation, "__args__", ()))
            section = next(a for a in candidates if hasattr(a, "model_fields"))
        return f'{source}: unknown key "{name}".{did_you_mean(keys[-1], section.model_fields)}'
    if problem["type"] == "value_error":
        return f"{source}: {problem['ctx']['error']}"
    return f"{source}: {name} = {problem['input']!r}: {problem['msg']}"

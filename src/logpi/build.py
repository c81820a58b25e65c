"""From a configuration to what a run is made of: algorithm, task or environment, policy, experience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from logpi.config import ROW_OPTIONS, Config
from logpi.errors import InputError


def algorithm_of(config: Config) -> Any:
    """Return the row of the table that a configuration names, with its options. Raises InputError for one that does not
    fit."""
    from logpi.algorithms import get_algorithm

    if config.demonstrated:
        from logpi.supervised import MAXIMUM_LIKELIHOOD

        return MAXIMUM_LIKELIHOOD
    chosen = config.algorithm
    load_modules(config.modules)
    row = get_algorithm(chosen.name)
    if "budget" in row.option_names():
        row = row.with_options(budget=float(config.rollout.max_completion_length))
    row = row.with_options(**chosen.model_dump(include=ROW_OPTIONS), **chosen.options)
    if problem := config.cut_problem(row.beta):  # a row of one's own may have a beta of its own
        raise InputError(problem)
    if config.rollout.num_spare_prompts and not row.uses_groups:
        raise InputError(
            f'rollout.num_spare_prompts: algorithm "{row.name}" does not compare completions of one prompt, so '
            "groups of equal rewards have a gradient, and leaving them out loses it; set it to 0, or take rloo or dapo"
        )
    _require_solutions(config, row)
    if config.reward.dense:
        _require_times(config, row)
    row = replace(row, kl=chosen.kl or row.kl, **chosen.terms())
    if config.rollout.exploration_epsilon and not row.reads_ratios:
        raise InputError(
            f'rollout.exploration_epsilon={config.rollout.exploration_epsilon}: algorithm "{row.name}" would take the '
            'explored actions for its own and climb another objective; set algorithm.importance = "sequence", take '
            "v_trace, or set it to 0"
        )
    return row


def _require_solutions(config: Config, row: Any) -> None:
    """Raise InputError unless completions begin with solutions where the row, and only where it, learns from them."""
    given = config.rollout.solution_tokens
    if row.uses_solutions and not given:
        raise InputError(
            f'algorithm "{row.name}" begins completions with the task\'s solutions: set rollout.solution_tokens, for '
            "example to the tokens of a long one"
        )
    if row.uses_solutions and config.rollout.num_spare_prompts:
        raise InputError(
            f'rollout.num_spare_prompts: algorithm "{row.name}" learns from groups of equal rewards too; set it to 0'
        )
    if given and not row.uses_solutions:
        raise InputError(
            f'rollout.solution_tokens={given}: algorithm "{row.name}" would take the solution\'s tokens for its own; '
            "take mixer, or set it to 0"
        )


def _require_times(config: Config, row: Any) -> None:
    """Raise InputError unless the row reads when rewards come, and nothing goes by the sum of them alone."""
    if "gamma" not in row.option_names():
        raise InputError(
            f'reward.dense: algorithm "{row.name}" reads only the sum of a completion\'s rewards, whichever token they '
            "are paid to; take reinforce_baseline, a2c or ppo, or leave it out"
        )
    if config.rollout.num_spare_prompts:
        raise InputError(
            "rollout.num_spare_prompts: with reward.dense groups of equal rewards have a gradient; set it to 0"
        )
    if config.policy.kind == "encoder":
        raise InputError('reward.dense: a tagger (policy.kind "encoder") begins no text; leave it out')


def load_modules(files: Sequence[str]) -> None:
    """Import Python files that register algorithms; one that was imported before is not imported again."""
    from logpi.tasks.reward_loading import module_of_file

    for file in files:
        place = str(Path(file).expanduser().resolve())
        if place not in _LOADED:
            module_of_file(place)
            _LOADED.add(place)


_LOADED: set[str] = set()


def task_of(config: Config) -> Any:
    """Return the task, its rewards in child processes where they have a time limit."""
    from logpi.tasks import make_task
    from logpi.tasks.isolation import Limits, apply_limits

    assert config.task is not None
    task, options = make_task(**config.task), config.reward
    limits = (
        None
        if options.timeout_seconds is None
        else Limits(options.timeout_seconds, options.num_workers, options.max_calls)
    )
    return replace(
        task,
        heldout=task.heldout[: config.evaluation.num_problems],
        rewards=list(apply_limits(task.rewards, limits)),
        metrics=list(apply_limits(task.metrics, limits)),
    )


def require_use(config: Config, task: Any) -> None:
    """Raise InputError where the command can't use the task: nothing scores it, or nothing in it is to be imitated."""
    is_text = task.name == "text"
    if task.environment is not None and config.command == "train":
        _require_turns(config, task)
    elif config.command == "train" and not task.rewards:
        other = "pretrain" if is_text else "sft"
        raise InputError(f'task "{task.name}" has no rewards to train on: it is for logpi {other}')
    if config.command == "sft" and is_text:
        raise InputError('task "text" has no completions to imitate: it is for logpi pretrain')
    _require_kind(config, task)
    if config.command == "pretrain" and not is_text:
        raise InputError(f'task "{task.name}" is no text to read: logpi pretrain takes the task "text"')


def _require_kind(config: Config, task: Any) -> None:
    """Raise InputError where a task for a tagger meets another policy, or a tagger another task or algorithm."""
    is_encoder = config.policy.kind == "encoder"
    if task.labels and not is_encoder:
        raise InputError(f'task "{task.name}" is for a tagger: set policy.kind = "encoder", or task.form = "spans"')
    if is_encoder and config.command != "pretrain" and not task.labels:
        raise InputError(f'policy.kind "encoder": task "{task.name}" has no labels to tag words with')
    if is_encoder and config.pretrain is not None and config.policy.model:
        raise InputError("policy.model: a new encoder has the shape of pretrain.shape; leave it out")
    row = algorithm_of(config)
    if is_encoder and (row.uses_values or row.uses_solutions):
        needs = "a value function" if row.uses_values else "completions that begin with a solution"
        raise InputError(f'algorithm "{row.name}" needs {needs}, and an encoder has none; pick rloo')


def _require_turns(config: Config, task: Any) -> None:
    """Raise InputError for options that a task of several turns, whose environment gives the rewards, does not read."""
    for name, field in type(config.reward).model_fields.items():
        if getattr(config.reward, name) != field.default:
            raise InputError(f'reward.{name}: the environment of task "{task.name}" gives the rewards; leave it out')
    if config.algorithm.name in ("remax", "mixer"):
        name = config.algorithm.name
        raise InputError(f'algorithm "{name}" is of single completions; task "{task.name}" has several turns')


def environment_of(config: Config) -> Any:
    """Return the environment."""
    from logpi.environments.gym import GymEnvironment

    assert config.environment is not None
    return GymEnvironment(config.environment)


def transform_of(config: Config) -> Any:
    """Return what turns a language model's logits into its policy."""
    from logpi.policies.token_log_probs import Transform

    return Transform(**config.policy.model_dump(include={"temperature", "top_k", "top_p", "min_p"}))


def build(config: Config, task: Any = None, *, weights_from: Path | None = None) -> tuple[Any, Any, Any]:
    """Return (experience, policy, algorithm). The task is built, and so checked, before any weights load."""
    algorithm = algorithm_of(config)
    if config.environment is not None:
        from logpi.control import EnvironmentExperience
        from logpi.policies.mlp import MLP

        environment = environment_of(config)
        policy = MLP(environment.num_features, environment.num_actions, config.policy.hidden_sizes, config.seed)
        experience = EnvironmentExperience(
            policy,
            environment,
            seed=config.seed,
            num_generations=config.rollout.num_generations,
            num_eval_episodes=config.evaluation.num_episodes,
            exploration_epsilon=config.rollout.exploration_epsilon,
        )
        return experience, policy, algorithm
    task = task or task_of(config)
    policy, load_start = _language_policy(config, task, algorithm, weights_from)
    scored = config.demonstrated is None or bool((task.metrics or task.environment) and task.heldout)
    asked = _asked(config, task, policy, algorithm, load_start) if scored else None
    if config.demonstrated is not None:
        return _demonstrations(config, policy, task, scoring=asked), policy, algorithm
    return asked, policy, algorithm


def _language_policy(config: Config, task: Any, algorithm: Any, weights_from: Path | None) -> tuple[Any, Any]:
    """Return the policy of a task, and what loads the one that training begins with; None for a tagger."""
    options = config.policy
    start = str(options.model or weights_from)
    common = {"dtype": options.dtype, "transform": transform_of(config)}
    if options.kind == "encoder":
        from logpi.policies.encoder_loading import load_encoder

        return load_encoder(str(weights_from or start), task.labels, **common, seed=config.seed), None
    from logpi.policies.loading import load_causal_lm

    policy = load_causal_lm(
        str(weights_from or start),
        **common,
        lora=None if options.lora is None or weights_from else options.lora.model_dump(),
        value_head=algorithm.uses_values,
        seed=config.seed,
    )
    return policy, partial(load_causal_lm, start, **common)


def _asked(config: Config, task: Any, policy: Any, algorithm: Any, start_policy: Any) -> Any:
    """Return the experience of a task whose prompts the policy completes, or whose environment it talks to."""
    from logpi.conversations import ConversationExperience
    from logpi.experience import TaskExperience
    from logpi.supervised import beginnings

    rollout = config.rollout
    common = {
        "seed": config.seed,
        "num_prompts": rollout.num_prompts,
        "num_generations": rollout.num_generations,
        "max_completion_length": 0 if task.labels else rollout.max_completion_length,  # a label a word
        "max_rows": rollout.max_rows,
        "num_spare_prompts": rollout.num_spare_prompts,
        "upsampling": rollout.upsampling,
    }
    if task.environment is not None:
        return ConversationExperience(policy, task, **common)
    return TaskExperience(
        policy,
        task,
        **common,
        reward=config.reward,
        greedy_baseline=algorithm.baseline == "greedy",
        beginnings=beginnings(task.train, task, policy, rollout.solution_tokens, config.max_steps)
        if algorithm.uses_solutions
        else None,
        start_policy=start_policy,
    )


def _demonstrations(config: Config, policy: Any, task: Any, scoring: Any) -> Any:
    """Return the experience of a warm start: the task's solutions, or its documents cut into blocks."""
    from logpi import supervised

    section, is_encoder = config.demonstrated, config.policy.kind == "encoder"
    assert section is not None
    if config.pretrain is None:
        read = partial(supervised.taggings if is_encoder else supervised.solutions, task=task, policy=policy)
    elif is_encoder:
        read = partial(supervised.pieces, policy=policy, block_size=config.pretrain.block_size, seed=config.seed)
    else:
        read = partial(supervised.blocks, policy=policy, block_size=config.pretrain.block_size)
    return supervised.Demonstrations(
        policy,
        task,
        read,
        seed=config.seed,
        batch_size=section.batch_size,
        micro_batch_tokens=config.learner.micro_batch_tokens,
        scoring=scoring,
    )


def dropout_of(config: Config, policy: Any) -> Any:
    """Return what is left out of the gradients of demonstrations; None where nothing is. Raises InputError for a policy
    that can't."""
    from logpi.policies.dropout import Dropout

    if config.sft is None or not config.sft.dropout:
        return None
    if getattr(policy, "fused", None) is None:
        raise InputError(
            f"sft.dropout={config.sft.dropout}: only Llama-shaped language models (Llama, Mistral, Qwen2, Qwen3, "
            "SmolLM) have it; leave it out"
        )
    return Dropout(config.sft.dropout, config.seed)


def write_start(config: Config, task: Any, folder: Path) -> None:
    """Write the tokenizer and the new network that a run begins with, whole or not at all, once."""
    from logpi.policies.untrained import write_untrained
    from logpi.policies.untrained_encoder import write_untrained_encoder
    from logpi.sections import Shape
    from logpi.storage import new_folder

    if config.pretrain is not None:
        options, context, shape = config.pretrain, config.pretrain.block_size, config.pretrain.shape or Shape()
    else:
        assert config.sft is not None and config.sft.new is not None
        options, context, shape = config.sft.new, config.sft.new.context_length, config.sft.new.shape
    if folder.exists():
        return
    texts = [text for problem in task.train for text in _texts(problem, task.solution)]
    given = shape.model_dump(exclude_none=True)
    common = {"vocab_size": options.vocab_size, "context": context, "shape": given, "seed": config.seed}
    with new_folder(folder) as temporary:
        if config.policy.kind == "encoder":
            sentences = [" ".join(problem.columns["words"]) for problem in task.train] if task.labels else texts
            write_untrained_encoder(temporary, sentences, labels=task.labels, **common)
        else:
            write_untrained(temporary, texts, like=config.policy.model, **common)


def _texts(problem: Any, solution: str) -> list[str]:
    """Return a problem's texts: its prompt, and what is to be imitated."""
    found = [problem.prompt, problem.columns.get(solution)]
    return [
        text
        for part in found
        if part
        for text in ([part] if isinstance(part, str) else [message["content"] for message in part])
    ]

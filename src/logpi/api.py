"""The front door in Python: `logpi.train(...)`, and what the command line calls."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from logpi.config import Config, make_config, merge, read_toml
from logpi.errors import InputError
from logpi.recipes import recipe_header, recipe_names, recipe_path, resolve

__all__ = [
    "build", "dry_run", "evaluate_run", "objective_of", "prove_gradients", "recipe_header", "recipe_names", "resolve",
    "run", "sample_run", "train",
]  # fmt: skip

# --- what stands before a run ----------------------------------------------------------------------------------


def _algorithm(config: Config) -> Any:
    from logpi.algorithms import get_algorithm

    names = {"gamma", "gae_lambda", "epsilon", "epsilon_high", "std_epsilon", "n_steps", "budget", "beta"}
    load_modules(config.modules)
    row = get_algorithm(config.algorithm.name)
    if "budget" in row.option_names():
        row = row.with_options(budget=float(config.rollout.max_completion_length))
    return row.with_options(**config.algorithm.model_dump(include=names), **config.algorithm.options)


def load_modules(files: Sequence[str]) -> None:
    """Import Python files that register algorithms; one that was imported before is not imported again."""
    from logpi.tasks.reward_loading import module_of_file

    for file in files:
        place = str(Path(file).expanduser().resolve())
        if place not in _LOADED:
            module_of_file(place)
            _LOADED.add(place)


_LOADED: set[str] = set()


def _task(config: Config) -> Any:
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
        task, rewards=list(apply_limits(task.rewards, limits)), metrics=list(apply_limits(task.metrics, limits))
    )


def _environment(config: Config) -> Any:
    from logpi.environments.gym import GymEnvironment

    assert config.environment is not None
    return GymEnvironment(config.environment)


def build(config: Config, task: Any = None, *, weights_from: Path | None = None) -> tuple[Any, Any, Any]:
    """Return (experience, policy, algorithm). The task is built, and so checked, before any weights load."""
    from logpi.experience import EnvironmentExperience, TaskExperience

    algorithm, rollout = _algorithm(config), config.rollout
    if config.environment is not None:
        from logpi.policies.mlp import MLP

        environment = _environment(config)
        policy = MLP(environment.num_features, environment.num_actions, config.policy.hidden_sizes, config.seed)
        experience = EnvironmentExperience(
            policy,
            environment,
            seed=config.seed,
            num_generations=rollout.num_generations,
            num_eval_episodes=config.evaluation.num_episodes,
        )
        return experience, policy, algorithm
    from logpi.policies.loading import load_causal_lm

    task, options = task or _task(config), config.policy
    load = partial(load_causal_lm, dtype=options.dtype, temperature=options.temperature)
    policy = load(
        str(weights_from or options.model),
        lora=None if options.lora is None or weights_from else options.lora.model_dump(),
        value_head=algorithm.uses_values,
        seed=config.seed,
    )
    experience = TaskExperience(
        policy,
        task,
        seed=config.seed,
        num_prompts=rollout.num_prompts,
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        max_rows=rollout.max_rows,
        on_failure=config.reward.on_failure,
        start_policy=partial(load, str(options.model)),
    )
    return experience, policy, algorithm


def objective_of(config: Config) -> dict[str, Any]:
    """Return what a run maximises: in a line, and whole."""
    from logpi.objective import objective

    return objective(_algorithm(config), config)


def dry_run(config: Config) -> dict[str, Any]:
    """Return what a run would do, before weights load: configuration, objective, a prompt as tokens, the rewards on a
    completion made up for the purpose, the memory that the weights, the gradient and the optimiser need."""
    out: dict[str, Any] = {"config": config.plain(), **objective_of(config)}
    if config.environment is not None:
        environment = _environment(config)
        return {**out, "environment": {"features": environment.num_features, "actions": environment.num_actions}}
    from logpi.evaluation import check_rewards
    from logpi.experience import prompt_tokens
    from logpi.policies import loading
    from logpi.policies.model_folder import find

    task = _task(config)
    source = find(str(config.policy.model))
    tokenizer = loading.load_tokenizer(source)
    model_config = loading.load_config(source)
    loading.eos_token_ids(source, tokenizer, model_config)
    problem = task.train[0]
    tokens = prompt_tokens(tokenizer, problem.prompt).tolist()
    return {
        **out,
        "train_size": len(task.train),
        "heldout_size": len(task.heldout),
        "prompt": tokenizer.decode(tokens),
        "prompt_tokens": tokenizer.convert_ids_to_tokens(tokens),
        "reward_check": {"completion": "1", **check_rewards(task, config.reward.on_failure)},
        "memory": loading.memory_estimate(model_config, config, len(tokens)),
    }


# --- runs ------------------------------------------------------------------------------------------------------


def run_folder_of(config: Config) -> Path:
    """Return where a run's files go by default: the same command means the same folder."""
    return Path("runs") / f"{config.recipe}-{config.fingerprint()}"


def run(
    config: Config,
    *,
    folder: Path | None = None,
    fresh: bool = False,
    fork: int | None = None,
    observer: Any = None,
) -> dict[str, Any]:
    """Train, or go on with an unfinished run in the same folder; return the summary.

    `fresh` starts anew in a folder with a number behind its name; `fork` starts a new run from the checkpoint that the
    run in `folder` has of that step, in a folder of its own, which the same call goes on with. Raises InputError for
    whatever can't be used, before weights load where that is possible.
    """
    from logpi import session
    from logpi.console import make_observer
    from logpi.evaluation import check_rewards
    from logpi.interrupts import Interrupts
    from logpi.platforms import require_posix
    from logpi.policies.model_folder import find
    from logpi.run_folder import RunFolder
    from logpi.tasks.isolation import IN_WORKER, close

    require_posix("training")
    if IN_WORKER in os.environ:
        raise InputError('this file trains when it is imported: put what trains under if __name__ == "__main__":')
    observer = observer or make_observer(json=False)
    path = folder or run_folder_of(config)
    if fresh:
        numbered = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
        path = next(candidate for candidate in numbered if not candidate.exists())
    _algorithm(config)
    task = None
    if config.task is not None:  # bad data, a bad reward, a missing model: said before the folder is made
        task = _task(config)
        check_rewards(task, config.reward.on_failure)
        find(str(config.policy.model))
    else:
        _environment(config)
    if fork is not None:
        if folder is None:
            raise InputError(f"--fork {fork} starts from a run: name it with --run")
        path = session.fork(folder, fork, config)
    with RunFolder.open(path.absolute(), config.plain()) as record, Interrupts() as interrupts:
        try:
            summary = record.read_json("summary.json")
            if summary is not None and (summary["steps"] >= config.max_steps or summary.get("target_reached")):
                observer.note("this run is finished; more --max-steps extend it, another --run or --seed starts one")
            else:
                summary = _run(config, task, record, interrupts, observer)
        finally:
            close(task)
        observer.finish(summary)
        return summary


def _run(config: Config, task: Any, record: Any, interrupts: Any, observer: Any) -> dict[str, Any]:
    """Build what a run needs, train, and write what it leaves behind."""
    from logpi import session
    from logpi.learner import Learner, linear_schedule
    from logpi.ledger import balance
    from logpi.trainer import Trainer, use_threads

    threads = use_threads(config.threads)
    experience, policy, algorithm = build(config, task)
    options = config.learner
    learner = Learner(
        policy,
        algorithm,
        learning_rate=options.learning_rate,
        schedule=linear_schedule(config.max_steps, options.warmup_steps, options.schedule),
        adam_betas=options.adam_betas,
        adam_epsilon=options.adam_epsilon,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        micro_batch_tokens=options.micro_batch_tokens,
        value_coef=config.algorithm.value_coef,
    )
    info = session.begin(config, experience, policy, algorithm, record, threads)
    session.check_space(record, policy, config.checkpoint.keep)
    observer.start(info)
    fork = record.read_json(session.FORK) or {"step": 0}
    trainer = Trainer(
        config,
        experience,
        algorithm,
        learner,
        record,
        observer,
        run_id=info["run_id"],
        first_step=fork["step"],
        interrupts=interrupts,
    )
    summary = trainer.run()
    summary |= {"run": str(record.path), "recipe": config.recipe}
    if summary["status"] == "finished":
        samples = record.rows("samples.jsonl")
        summary["ledger"] = balance(
            samples, experience.plan, config.rollout.num_generations, range(trainer.first_step, trainer.steps_done)
        )
        summary["samples"] = experience.before_and_after(record)
        summary["final"] = str(record.path / "final")
        save_final(policy, record.path / "final")
        record.write_json("summary.json", summary)
    return summary


def save_final(policy: Any, folder: Path) -> None:
    """Write the trained policy in its own format: a Hugging Face folder, a peft adapter, or safetensors."""
    from logpi.policies.saving import save_policy
    from logpi.storage import new_folder

    with new_folder(folder) as temporary:
        save_policy(policy, temporary)


# --- Python ----------------------------------------------------------------------------------------------------


def train(
    recipe: str | None = None,
    *,
    model: str | None = None,
    data: Any = None,
    rewards: Callable | list[Callable] | None = None,
    algorithm: str | dict[str, Any] | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    run: str | Path | None = None,
    fresh: bool = False,
    fork: int | None = None,
    observer: Any = None,
    **sections: Any,
) -> dict[str, Any]:
    """Train from a recipe, or on your own `data` with your own `rewards`; return the run's summary.

    `data`: a file (JSONL, CSV, Parquet), an iterable of dicts or a Hugging Face dataset with a column "prompt".
    `rewards`: functions with TRL's signature. Other options are the configuration's sections, as dicts:
    `rollout={"num_prompts": 8}, learner={"learning_rate": 1e-5}`. Raises InputError for anything that can't be used;
    after Ctrl-C the run is saved and KeyboardInterrupt raised: the same call goes on.
    """
    overrides: dict[str, Any] = {k: v for k, v in {"seed": seed, "max_steps": max_steps}.items() if v is not None}
    task: dict[str, Any] = {}
    if rewards is not None:
        task |= {"name": "custom", "rewards": rewards}
    if data is not None:
        task["data"] = data
    if task:
        overrides["task"] = task
    if model is not None:
        overrides["policy"] = {"model": str(model)}
    if algorithm is not None:
        overrides["algorithm"] = {"name": algorithm} if isinstance(algorithm, str) else algorithm
    overrides = merge(overrides, sections)
    config = resolve(recipe, overrides) if recipe else make_config({"recipe": "custom", **overrides}, "logpi.train")
    summary = run_(config, folder=None if run is None else Path(run), fresh=fresh, fork=fork, observer=observer)
    if summary["status"] == "stopped":  # saved; now what the signal asks of a program
        raise KeyboardInterrupt if summary["signal"] == signal.SIGINT else SystemExit(128 + summary["signal"])
    return summary


run_ = run  # `train` has an argument called run, as the command line has


def _loaded_run(run: str, recipe: str | None, data: str | None, seed: int | None) -> tuple[Config, Path | None]:
    """Return the configuration of a finished run (or of a recipe, for a model), and the folder with its weights."""
    folder = Path(run).expanduser()
    if (folder / "config.json").is_file() and (folder / "run.json").is_file():
        import json

        values = json.loads((folder / "config.json").read_text())
        weights: Path | None = folder / "final"
        if not (folder / "final").is_dir():
            raise InputError(f"{run} has no final/ yet: let the run finish (the same train command goes on)")
    elif recipe is not None:
        values, weights = read_toml(recipe_path(recipe)), None
        values = merge(values, {"policy": {"model": run}})
    else:
        raise InputError(f"{run} is not a run folder; for a model say what to ask it with --recipe")
    overrides: dict[str, Any] = {} if seed is None else {"seed": seed}
    if data is not None:
        overrides["task"] = {"data": data}
    return make_config(merge(values, overrides), run), weights


def evaluate_run(
    run: str, *, recipe: str | None = None, data: str | None = None, seed: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Score a run's final policy (or a model, with a recipe) on held-out problems, or on all of `data`."""
    config, weights = _loaded_run(run, recipe, data, seed)
    experience, policy, _ = build(config, weights_from=weights if config.task is not None else None)
    if config.environment is not None and weights is not None:
        from logpi.policies.saving import load_mlp

        load_mlp(policy, weights)
    elif config.task is not None:
        task = experience.task
        heldout = [*task.heldout, *task.train] if data is not None else task.heldout
        experience.task = replace(task, heldout=heldout[:limit])
    return {"run": run, **experience.evaluate(0).as_dict()}


def sample_run(run: str, prompt: str, num: int = 4) -> list[dict[str, Any]]:
    """Return `num` completions of a prompt (as a chat message where the model has a template) by a run or a model."""
    from logpi.experience import prompt_tokens
    from logpi.policies.loading import load_causal_lm
    from logpi.rollout.engine import Sampling, TokenPrompt, generate

    folder = Path(run).expanduser()
    is_run = (folder / "final").is_dir()
    policy = load_causal_lm(str(folder / "final") if is_run else run)
    chat = [{"role": "user", "content": prompt}] if policy.tokenizer.chat_template else prompt
    tokens = prompt_tokens(policy.tokenizer, chat)
    drawn = generate(policy, [TokenPrompt(0, tokens)], num, Sampling(128))
    return [
        {
            "completion": policy.tokenizer.decode(t.actions, skip_special_tokens=True),
            "surprisal": float(-t.behavior_log_probs.sum()),
            "tokens": len(t),
            "terminated": t.terminated,
        }
        for t in drawn
    ]


def prove_gradients(algorithm: str | None = None, module: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row for each algorithm (or one) and set-up: how its mean gradient relates to the exact one."""
    from logpi.algorithms import ALGORITHMS, get_algorithm
    from logpi.exact import prove

    load_modules([] if module is None else [module])
    yield from prove([get_algorithm(algorithm)] if algorithm else list(ALGORITHMS.values()))

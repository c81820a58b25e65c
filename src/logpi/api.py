"""The front door in Python: `logpi.train(...)`, and what the command line calls."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from logpi.build import (
    algorithm_of,
    build,
    dropout_of,
    environment_of,
    load_modules,
    require_use,
    task_of,
    transform_of,
    write_start,
)
from logpi.config import Config, make_config, merge, read_toml
from logpi.errors import InputError, did_you_mean
from logpi.recipes import recipe_header, recipe_names, recipe_path, resolve

__all__ = [
    "build", "dry_run", "evaluate_run", "objective_of", "prove_gradients", "recipe_header", "recipe_names", "resolve",
    "run", "sample_run", "train",
]  # fmt: skip

# --- what stands before a run ----------------------------------------------------------------------------------


def objective_of(config: Config) -> dict[str, Any]:
    """Return what a run maximises: in a line, and whole."""
    from logpi.objective import objective

    return objective(algorithm_of(config), config)


def dry_run(config: Config) -> dict[str, Any]:
    """Return what a run would do, before weights load: configuration, objective, a prompt as tokens, the rewards on a
    completion made up for the purpose, the memory that it will need."""
    out: dict[str, Any] = {"config": config.plain(), **objective_of(config)}
    if config.environment is not None:
        environment = environment_of(config)
        return {**out, "environment": {"features": environment.num_features, "actions": environment.num_actions}}
    from logpi.evaluation import check_rewards
    from logpi.policies import loading
    from logpi.policies.chat import prompt_tokens
    from logpi.policies.memory import Work, can_estimate, memory_estimate
    from logpi.policies.model_folder import find

    task = task_of(config)
    require_use(config, task)
    if config.begins_anew or task.labels:  # made from the data when it runs; or words in, labels out
        return {**out, "train_size": len(task.train), "heldout_size": len(task.heldout)}
    source = find(str(config.policy.model))
    tokenizer = loading.load_tokenizer(source)
    model_config = loading.load_config(source)
    loading.eos_token_ids(source, tokenizer, model_config)
    problem = task.train[0]
    tokens = prompt_tokens(tokenizer, problem.prompt).tolist()
    if config.sft is not None:
        out["completion"] = problem.columns.get(task.solution)
    if can_estimate(model_config):
        out["memory"] = memory_estimate(model_config, Work.of(config, len(tokens)))
    return {
        **out,
        "train_size": len(task.train),
        "heldout_size": len(task.heldout),
        "prompt": tokenizer.decode(tokens),
        "prompt_tokens": tokenizer.convert_ids_to_tokens(tokens),
        "reward_check": {"completion": "1", **check_rewards(task, config.reward.on_failure)},
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
    from logpi.policies.loading import load_config
    from logpi.policies.memory import require_memory
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
    algorithm_of(config)
    task = None
    if config.task is not None:  # bad data, a bad reward, a missing model: said before the folder is made
        task = task_of(config)
        require_use(config, task)
        check_rewards(task, config.reward.on_failure)
        if config.policy.model:
            source = find(config.policy.model)
            if config.policy.kind == "causal_lm" and not config.begins_anew:
                require_memory(config, load_config(source))
    else:
        environment_of(config)
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
    from logpi.learner import Learner, learning_rate_schedule
    from logpi.ledger import balance
    from logpi.trainer import Trainer, use_threads

    threads = use_threads(config.threads)
    start = record.path / "start" if config.begins_anew else None
    if start is not None:
        write_start(config, task, start)
    experience, policy, algorithm = build(config, task, weights_from=start)
    options = config.learner
    learner = Learner(
        policy,
        algorithm,
        learning_rate=options.learning_rate,
        schedule=learning_rate_schedule(config.max_steps, options.warmup_steps, options.schedule),
        adam_betas=options.adam_betas,
        adam_epsilon=options.adam_epsilon,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        micro_batch_tokens=options.micro_batch_tokens,
        value_coef=config.algorithm.value_coef,
        dropout=dropout_of(config, policy),
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
            samples,
            experience.plan,
            len(experience.plan(0)) - config.rollout.num_spare_prompts,
            config.rollout.num_generations if experience.draws else 1,
            range(trainer.first_step, trainer.steps_done),
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
        overrides["task"] = {"data": data, "heldout": 0}
    return make_config(merge(values, overrides), run), weights


def evaluate_run(
    run: str, *, recipe: str | None = None, data: str | None = None, seed: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Score a run's final policy (or a model, with a recipe) on held-out problems, or on all of `data`."""
    config, weights = _loaded_run(run, recipe, data, seed)
    task = None
    if config.task is not None:
        task = task_of(config)
        heldout = [p for p in task.train if not p.made_up] if data is not None else task.heldout
        task = replace(task, heldout=heldout[:limit])
    experience, policy, _ = build(config, task, weights_from=weights if task is not None else None)
    if task is None and weights is not None:
        from logpi.policies.saving import load_mlp

        load_mlp(policy, weights)
    return {"run": run, **experience.evaluate(0).as_dict()}


def sample_run(run: str, prompt: str, num: int = 4) -> list[dict[str, Any]]:
    """Return `num` completions of a prompt (a chat message where the model has a template), drawn as the run's were."""
    from logpi.policies.chat import prompt_tokens
    from logpi.policies.loading import load_causal_lm
    from logpi.rollout.engine import Sampling, TokenPrompt, generate

    folder = Path(run).expanduser()
    is_run = (folder / "final").is_dir()
    config = _loaded_run(run, None, None, None)[0] if is_run else None
    if config is not None and config.policy.kind == "encoder":
        raise InputError(f"{run} holds an encoder, which completes no prompt; logpi evaluate {run} shows what it does")
    options = {} if config is None else {"transform": transform_of(config)}
    policy = load_causal_lm(str(folder / "final") if is_run else run, **options)
    has_read_only = config is not None and config.pretrain is not None  # text, never a chat
    as_text = has_read_only or not policy.tokenizer.chat_template
    tokens = prompt_tokens(policy.tokenizer, prompt if as_text else [{"role": "user", "content": prompt}])
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


def prove_gradients(
    algorithm: str | None = None, module: str | None = None, policy: str = "tabular"
) -> Iterator[dict[str, Any]]:
    """Yield a row for each algorithm (or one) and set-up: how its mean gradient relates to the exact one. `policy`:
    tabular, or causal_lm for a tiny Hugging Face model."""
    if policy not in ("tabular", "causal_lm"):
        raise InputError(f'--policy "{policy}".{did_you_mean(policy, ("tabular", "causal_lm"))}')
    from logpi.algorithms import ALGORITHMS, get_algorithm
    from logpi.exact import prove

    load_modules([] if module is None else [module])
    rows = [get_algorithm(algorithm)] if algorithm else list(ALGORITHMS.values())
    yield from prove(rows, language=policy == "causal_lm")

"""The command line: words in, an exit code out. Whatever is slow to import waits until a command needs it.

Exit codes: 0 done; 2 unusable input; 3 a number is not finite; 4 the folder can't be written; 130 stopped by Ctrl-C,
143 by SIGTERM (saved, the same command goes on); 1 otherwise.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from logpi import __version__
from logpi.errors import InputError, LogpiError, did_you_mean

STOPPED = 130
STOPPED_LINE = "stopped: the same command goes on"

app = App(
    name="logpi",
    version=__version__,
    help="Policy gradients, from CartPole to language models.",
    help_format="plaintext",
    help_epilogue="Start with: logpi recipes",
    default_parameter=Parameter(negative=()),
)
app["--help"].help = "Show this help."
app["--version"].help = "Show the version."


def _help(text: str, **options: Any) -> Parameter:
    return Parameter(help=text, show_default=False, **options)


Seed = Annotated[int | None, _help("Of every random draw.")]
Json = Annotated[bool, _help("Print one JSON object on stdout as the last line; progress goes to stderr.")]
Debug = Annotated[bool, _help("Show the traceback of an error.")]
RunFolder = Annotated[str, _help("A run's folder, or a model's folder or hub id.")]


@app.command
def train(
    recipe: Annotated[str, _help("A recipe's name, or a FILE.toml.")],
    /,
    *,
    seed: Seed = None,
    run: Annotated[Path | None, _help("The run's folder; without it, runs/RECIPE-HASH.")] = None,
    max_steps: Annotated[int | None, _help("Steps in all; a longer run goes on where a shorter one ended.")] = None,
    algorithm: Annotated[str | None, _help("reinforce, rloo, grpo, ppo, ... (algorithm.name)")] = None,
    module: Annotated[str | None, _help("A Python file that registers algorithms of your own.")] = None,
    model: Annotated[str | None, _help("A folder, a hub id or smollm2-q4 (policy.model).")] = None,
    data: Annotated[str | None, _help("The task's data file (task.data).")] = None,
    device: Annotated[str | None, _help("Where to compute.")] = None,
    threads: Annotated[int | None, _help("Processor threads; without it, one a core.")] = None,
    strict: Annotated[bool, _help("Stop at the first log-prob in which sampler and learner differ.")] = False,
    smoke: Annotated[bool, _help("Two tiny steps, to see that everything works.")] = False,
    dry_run: Annotated[bool, _help("Show what would run, load no weights.")] = False,
    fresh: Annotated[bool, _help("Start anew, in RUN-2 or the next free number.")] = False,
    fork: Annotated[int | None, _help("Start a new run from the checkpoint that --run has of this step.")] = None,
    json: Json = False,
    debug: Debug = False,
    overrides: Annotated[dict[str, Any] | None, Parameter(parse=False)] = None,
) -> int:
    """Train a policy, or go on with an interrupted run.

    Every field of the configuration is an option too, as --section.key value:
    --learner.learning-rate 1e-5, --policy.lora.r 8, --task.max-operand 30.
    """
    from logpi import api, console
    from logpi.config import merge

    common = {
        "seed": seed,
        "max_steps": max_steps,
        "modules": None if module is None else [module],
        "device": device,
        "threads": threads,
        "strict": strict or None,
        "algorithm": {"name": algorithm},
        "policy": {"model": model},
        "task": {"data": data},
    }
    changes = merge(_given(common), overrides or {})
    config = api.resolve(recipe, changes)
    if smoke:
        config = api.resolve(recipe, merge(_smoke(environment=config.environment is not None), changes))
    if dry_run:
        return _print_result(api.dry_run(config), json)
    observer = console.make_observer(json)
    try:
        summary = api.run(config, folder=run, fresh=fresh, fork=fork, observer=observer)
    finally:
        observer.close()
    if json:
        _print_json(summary)
    if summary["status"] == "stopped":
        _complain(STOPPED_LINE)
        return 128 + summary["signal"]
    return 0


@app.command
def evaluate(
    run: RunFolder,
    /,
    *,
    data: Annotated[str | None, _help("Another data file than the run's held-out problems.")] = None,
    recipe: Annotated[str | None, _help("The recipe whose task to use: for a model that has no run.")] = None,
    seed: Seed = None,
    limit: Annotated[int | None, _help("At most this many problems.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Score a trained run, or any model, on held-out problems."""
    from logpi import api

    return _print_result(api.evaluate_run(run, recipe=recipe, data=data, seed=seed, limit=limit), json)


@app.command
def sample(
    run: RunFolder,
    /,
    *,
    prompt: Annotated[str, _help("What to complete.", allow_leading_hyphen=True)],
    num: Annotated[int, _help("How many completions (4).")] = 4,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Complete a prompt with a trained run."""
    from logpi import api

    return _print_result({"prompt": prompt, "completions": api.sample_run(run, prompt, num)}, json)


@app.command
def prove(
    *,
    algorithm: Annotated[str | None, _help("One algorithm; without it, all of them.")] = None,
    module: Annotated[str | None, _help("A Python file that registers algorithms of your own.")] = None,
    policy: Annotated[str, _help("tabular, or causal_lm: a tiny Hugging Face model in float64 (minutes).")] = "tabular",
    resume: Annotated[bool, _help("Kill small runs, go on, compare byte by byte instead.")] = False,
    kills: Annotated[int, _help("With --resume: how often each run is killed (2).")] = 2,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Prove the gradients by enumeration: what each algorithm's averages to, against the exact one. About a minute."""
    from logpi import api, console

    if resume:
        from logpi import resume_proof

        rows = _shown(resume_proof.prove(kills), console.resume_row, json)
        holds = not any(row["different"] for row in rows)
        if json:
            _print_json({"holds": holds, "rows": rows})
        else:
            print(
                "they ended bit for bit like the runs that nobody killed" if holds else "the promise does NOT hold here"
            )
        return 0 if holds else 1
    rows = _shown(api.prove_gradients(algorithm, module, policy), console.bias_row, json, console.BIAS_HEAD)
    if json:
        _print_json({"rows": rows})
    return 0


def _shown(rows: Iterator[dict], line: Callable[[dict], str], json: bool, head: str = "") -> list[dict]:
    """Print each row as it comes, unless JSON is asked for; return them all."""
    found = []
    for row in rows:
        if not json:
            print(*([head] if head and not found else []), line(row), sep="\n", flush=True)
        found.append(row)
    return found


@app.command
def recipes(
    *,
    diff: Annotated[tuple[str, str] | None, _help("What differs: two of a recipe's name, a FILE.toml, a run.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List the recipes: command, expected score, time and hardware of each. Or compare two."""
    from logpi import api
    from logpi.console import difference_lines, visible

    if diff is not None:
        from logpi.recipe_diff import recipe_diff

        found = recipe_diff(*diff)
        if json:
            _print_json(found)
        else:
            print("\n".join(difference_lines(*diff, found)))
        return 0
    if json:
        _print_json({"recipes": [{"name": name, "header": api.recipe_header(name)} for name in api.recipe_names()]})
        return 0
    for name in api.recipe_names():
        header = [line.lstrip("#").strip() for line in api.recipe_header(name).splitlines()]
        print("\n  ".join([visible(name), *map(visible, filter(None, header))]))
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    """Return the exit code; every error becomes one message on stderr."""
    words, overrides, debug = list(arguments), {}, False
    try:
        if words[:1] == ["train"]:
            words, overrides = split_overrides(words)
        command, bound, unparsed = app.parse_args(words, exit_on_error=False, print_error=False)
        debug = bound.arguments.get("debug", False)
        extra = {"overrides": overrides} if "overrides" in unparsed else {}
        code = command(*bound.args, **bound.kwargs, **extra) or 0
        sys.stdout.flush()
        return code
    except CycloptsError as error:
        _complain(f"error: {_explain(error)}")
        return InputError.exit_code
    except LogpiError as error:
        _complain(f"error: {error}", debug)
        return error.exit_code
    except KeyboardInterrupt:
        _complain(STOPPED_LINE if words[:1] == ["train"] else "stopped")
        return STOPPED
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        remedy = "" if debug else " (run with --debug for the traceback)"
        _complain(f"error: {type(error).__name__}: {error}{remedy}", debug)
        return 1


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words without `--section.key value`, and those as nested values. Raises InputError if unknown."""
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    queue = iter(words)
    for word in queue:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or "." not in option:
            rest.append(word)
            continue
        path = option[2:].replace("-", "_")
        _check_known(option, path)
        if not equals:
            value = next(queue, "--")
            if value.startswith("--"):
                raise InputError(f"option {option} needs a value: {option} VALUE")
        _put(overrides, path.split("."), _parse(value))
    return rest, overrides


def _check_known(option: str, path: str) -> None:
    """Raise InputError unless the path leads to a field; what lies under `task` is the task's own business."""
    from logpi.config import Config

    known = list(_field_paths(Config))
    if path not in known and not path.startswith(("task.", "algorithm.options.")):
        options = ["--" + name.replace("_", "-") for name in known if "." in name]
        raise InputError(f"unknown option {option}.{did_you_mean(option.replace('_', '-'), options)}")


def _field_paths(section: Any, above: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield above + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if hasattr(kind, "model_fields"):
                yield from _field_paths(kind, f"{above}{name}.")


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value


def _parse(text: str) -> Any:
    """Return a number, true, false, null or a list as such, anything else as the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is None, and sections of which nothing is left."""
    cleaned = {key: _given(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}


def _smoke(environment: bool) -> dict[str, Any]:
    if environment:
        return {"max_steps": 2, "rollout": {"num_generations": 4}}
    rollout = {"num_prompts": 2, "num_generations": 4, "max_completion_length": 8}
    return {"max_steps": 2, "rollout": rollout, "evaluation": {"full_report": False}}


def _explain(error: CycloptsError) -> str:
    """Return a command line error in our words."""
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {', '.join(error.unused_tokens or ())}"
    if isinstance(error, MissingArgumentError) and "RECIPE" in str(error):
        return "which recipe? logpi train RECIPE (logpi recipes lists them)"
    return str(error)


def _complain(message: str, debug: bool = False) -> None:
    """Print a message on stderr, after the traceback when asked."""
    from logpi.console import visible

    if debug:
        traceback.print_exc()
    print("\n".join(map(visible, message.split("\n"))), file=sys.stderr)


def _print_result(result: Mapping[str, Any], as_json: bool) -> int:
    from logpi.console import outline

    if as_json:
        _print_json(result)
    else:
        print("\n".join(outline(result)))
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), default=str), flush=True)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has not, by null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

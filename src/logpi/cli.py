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
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from logpi import __version__
from logpi.errors import InputError, LogpiError
from logpi.overrides import smoke, split_overrides

STOPPED = 130
STOPPED_LINE = "stopped: the same command goes on"
TRAINING = (["train"], ["sft"], ["pretrain"])

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


Recipe = Annotated[str | None, _help("A recipe's name, or a FILE.toml; without it, what --data holds.")]
Overrides = Annotated[dict[str, Any] | None, Parameter(parse=False)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command that trains takes."""

    seed: Seed = None
    run: Annotated[Path | None, _help("The run's folder; without it, runs/RECIPE-HASH.")] = None
    max_steps: Annotated[int | None, _help("Steps in all; a longer run goes on where a shorter one ended.")] = None
    model: Annotated[str | None, _help("A folder, a hub id or smollm2-q4 (policy.model).")] = None
    data: Annotated[str | None, _help("The task's data file (task.data).")] = None
    device: Annotated[str | None, _help("Where to compute.")] = None
    threads: Annotated[int | None, _help("Processor threads; without it, one a core.")] = None
    smoke: Annotated[bool, _help("Two small steps with a tiny untrained model, to see that everything works.")] = False
    dry_run: Annotated[bool, _help("Show what would run, load no weights.")] = False
    fresh: Annotated[bool, _help("Start anew, in RUN-2 or the next free number.")] = False
    fork: Annotated[int | None, _help("Start a new run from the checkpoint that --run has of this step.")] = None

    def settings(self) -> dict[str, Any]:
        """Return the configuration's fields among them; None where nothing is given."""
        fields = {name: getattr(self, name) for name in ("seed", "max_steps", "device", "threads")}
        return {**fields, "policy": {"model": self.model}, "task": {"data": self.data}}


@app.command
def train(
    recipe: Annotated[str, _help("A recipe's name, or a FILE.toml.")],
    /,
    *,
    algorithm: Annotated[str | None, _help("reinforce, rloo, grpo, ppo, ... (algorithm.name)")] = None,
    module: Annotated[str | None, _help("A Python file that registers algorithms of your own.")] = None,
    strict: Annotated[bool, _help("Stop at the first log-prob in which sampler and learner differ.")] = False,
    options: RunOptions = RunOptions(),
    json: Json = False,
    debug: Debug = False,
    overrides: Overrides = None,
) -> int:
    """Train a policy, or go on with an interrupted run.

    Every field of the configuration is an option too, as --section.key value:
    --learner.learning-rate 1e-5, --policy.lora.r 8, --task.max-operand 30.
    """
    modules = None if module is None else [module]
    given = {"modules": modules, "strict": strict or None, "algorithm": {"name": algorithm}}
    return _train("train", recipe, given, options, json, overrides)


@app.command
def sft(
    recipe: Recipe = None,
    /,
    *,
    options: RunOptions = RunOptions(),
    json: Json = False,
    debug: Debug = False,
    overrides: Overrides = None,
) -> int:
    """Fine-tune a language model on demonstrations: a task's solutions, or a file of prompts with completions or of
    conversations.

    Options as in train: --sft.batch-size 16, --policy.lora.r 8.
    """
    return _train("sft", recipe, {}, options, json, overrides)


@app.command
def pretrain(
    recipe: Recipe = None,
    /,
    *,
    options: RunOptions = RunOptions(),
    json: Json = False,
    debug: Debug = False,
    overrides: Overrides = None,
) -> int:
    """Train a new language model, tokenizer and all, to predict the next token of a text.

    Options as in train: --pretrain.vocab-size 2048, --pretrain.shape.hidden-size 256.
    """
    return _train("pretrain", recipe, {}, options, json, overrides)


WITHOUT_RECIPE = {"sft": {"task": {"name": "demonstrations"}}, "pretrain": {"task": {"name": "text"}}}


def _train(
    command: str, recipe: str | None, given: dict, options: RunOptions, json: bool, overrides: dict[str, Any] | None
) -> int:
    """Put the configuration together and run it; return the exit code."""
    from logpi import api, console
    from logpi.config import merge

    if recipe is None and options.data is None and not (overrides or {}).get("task", {}).get("data"):
        raise InputError(f"{command} what? Give a recipe (logpi recipes lists them), or your own --data FILE")
    changes = merge(_given(merge(options.settings(), given)), overrides or {})
    if recipe is None:
        changes = merge({"recipe": command, **WITHOUT_RECIPE[command]}, changes)
    if command != "train":
        changes = merge({command: {}}, changes)
    config = api.resolve(recipe, changes)
    if config.command != command:
        raise InputError(f"{recipe} is for another command: logpi {config.command} {recipe}")
    if options.smoke:
        config = api.resolve(recipe, merge(smoke(config), changes))
    if options.dry_run:
        return _print_result(api.dry_run(config), json)
    observer = console.make_observer(json)
    try:
        summary = api.run(config, folder=options.run, fresh=options.fresh, fork=options.fork, observer=observer)
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
        if words[:1] in TRAINING:
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
        _complain(STOPPED_LINE if words[:1] in TRAINING else "stopped")
        return STOPPED
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        remedy = "" if debug else " (run with --debug for the traceback)"
        _complain(f"error: {type(error).__name__}: {error}{remedy}", debug)
        return 1


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is None, and sections of which nothing is left."""
    cleaned = {key: _given(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}


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

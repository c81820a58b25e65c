"""Every way a command line can go wrong has one message, one exit code and no traceback."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import logpi
from logpi.config import make_config, merge
from logpi.errors import InputError, NonFiniteError, StorageError, did_you_mean

ARITHMETIC = {"recipe": "arithmetic", "task": {"name": "arithmetic"}, "policy": {"model": "large"}}
CARTPOLE = {"recipe": "cartpole", "environment": "CartPole-v1", "policy": {"kind": "mlp"}}
RECIPES = {"arithmetic": ARITHMETIC, "cartpole": CARTPOLE}
SUMMARY = {"status": "finished", "steps": 2, "seconds": 1.0, "evaluation": {}, "samples": [], "run": "runs/x"}


class Api:
    """Stands in for logpi.api: resolves for real, records what it was asked to run."""

    def __init__(self):
        self.calls = []
        self.outcome = SUMMARY

    def resolve(self, recipe, overrides):
        if recipe not in RECIPES:
            raise InputError(f'no recipe "{recipe}".{did_you_mean(recipe, RECIPES)}')
        return make_config(merge(RECIPES[recipe], overrides), recipe)

    def _act(self, **call):
        self.calls.append(SimpleNamespace(**call))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def run(self, config, *, folder, fresh=False, fork=None, observer):
        observer.note("progress")
        return self._act(config=config, folder=folder, fresh=fresh, fork=fork)

    def dry_run(self, config):
        return {"objective": "A log π", "prompt_tokens": ["Hi", "\x1b"], "memory": {"weights": 2_500_000}}

    def evaluate_run(self, run, *, recipe, data, seed, limit):
        return self._act(run=run, recipe=recipe, data=data, seed=seed, limit=limit)

    def sample_run(self, run, prompt, num):
        return self._act(run=run, prompt=prompt, num=num)

    def recipe_names(self):
        return sorted(RECIPES)

    def recipe_header(self, name):
        return f"# logpi train {name}\n# 0.74 after 3 min on 2 cores\n"


@pytest.fixture
def api(monkeypatch):
    api = Api()
    monkeypatch.setitem(sys.modules, "logpi.api", api)
    monkeypatch.setattr(logpi, "api", api, raising=False)
    return api


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian arithmetic", 'Did you mean "train"?'),
        ("train", "logpi recipes lists them"),
        ("train arithmetic more", "unexpected argument more"),
        ("train arithmetc", 'no recipe "arithmetc". Did you mean "arithmetic"?'),
        ("train arithmetic --max-stps 3", "Unknown option: --max-stps. Did you mean --max-steps?"),
        ("train arithmetic --max-steps", "--max-steps requires an argument"),
        ("train arithmetic --max-steps few", 'unable to convert "few" into int'),
        ("train arithmetic --max-steps 0", "max_steps = 0: Input should be greater than or equal to 1"),
        ("train arithmetic --max-steps 1 --max-steps 2", "--max-steps specified multiple times"),
        ("train arithmetic --seed -1", "seed = -1"),
        ("train arithmetic --device tpu", "device = 'tpu'"),
        ("train arithmetic --no-json", "Unknown option: --no-json"),
        (
            "train arithmetic --learner.learnin-rate 1",
            'unknown option --learner.learnin-rate. Did you mean "--learner.learning-rate"?',
        ),
        ("train arithmetic --learnr.learning_rate 1", 'Did you mean "--learner.learning-rate"?'),
        ("train arithmetic --policy.lora.rank.x 1", "unknown option --policy.lora.rank.x."),
        ("train arithmetic --learner.learning-rate", "option --learner.learning-rate needs a value"),
        ("train arithmetic --learner.learning-rate --json", "option --learner.learning-rate needs a value"),
        ("train arithmetic --learner.learning-rate fast", "learner.learning_rate = 'fast': Input should be a valid"),
        ("train arithmetic --rollout.num-generations 1", "needs at least 2"),
        ("evaluate", "parameter RUN requires an argument"),
        ("evaluate runs/x --recipee r", "Did you mean --recipe?"),
        ("sample runs/x", "--prompt requires an argument"),
        ("sample runs/x --prompt a --num many", 'unable to convert "many" into int'),
        ("sample runs/x --learner.learning-rate 1 --prompt a", "Unknown option: --learner.learning-rate"),
    ],
)
def test_unusable_input_is_one_message_and_exit_2(api, call, words, message):
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and "Traceback" not in err
    assert not api.calls


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (InputError("reward \x1b[31m is None\nsay 0"), 2, "error: reward \\x1b[31m is None\nsay 0\n"),
        (NonFiniteError("loss is NaN"), 3, "error: loss is NaN\n"),
        (KeyboardInterrupt(), 130, "stopped: the same command goes on\n"),
        (SUMMARY | {"status": "stopped", "signal": 15}, 143, "stopped: the same command goes on\n"),
        (StorageError("runs/a: full"), 4, "error: runs/a: full\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (run with --debug for the traceback)\n"),
    ],
)
def test_what_ends_a_run_sets_the_exit_code(api, call, outcome, code, message):
    api.outcome = outcome
    assert call("train", "arithmetic")[::2] == (code, message)


@pytest.mark.parametrize("outcome", [InputError("bad"), KeyError("bad")])
def test_debug_shows_the_traceback(api, call, outcome):
    api.outcome = outcome
    code, _, err = call("train", "arithmetic", "--debug")
    assert code == getattr(outcome, "exit_code", 1)
    assert "Traceback" in err and "run with --debug" not in err


def test_options_reach_the_configuration(api, call):
    words = "--seed 3 --max-steps 7 --algorithm grpo --model here --data mine.jsonl --run runs/mine --fresh --fork 4"
    words += " --threads 2"
    dotted = ["--learner.learning-rate=2e-5", "--task.max_operand", "-30", "--policy.lora.r", "8"]
    dotted += ["--policy.lora.target-modules", '["q", "v"]', "--evaluation.every-steps", "null", "--task.word", "--=x"]
    code, _, _ = call("train", "arithmetic", *words.split(), *dotted[:-2], "--task.word=--x")
    [asked] = api.calls
    config = asked.config
    assert code == 0 and asked.fresh and asked.fork == 4 and asked.folder == Path("runs/mine")
    assert (config.seed, config.max_steps, config.threads, config.algorithm.name) == (3, 7, 2, "grpo")
    assert config.task == {"name": "arithmetic", "data": "mine.jsonl", "max_operand": -30, "word": "--x"}
    assert config.policy.model == "here" and config.learner.learning_rate == 2e-5
    assert config.policy.lora.r == 8 and config.policy.lora.target_modules == ["q", "v"]
    assert config.evaluation.every_steps is None


@pytest.mark.parametrize(("given", "rate"), [
    ({}, 1e-5), ({"lora": {"r": 4}}, 1e-4), ({"lora": {"r": 4}, "rate": 3e-5}, 3e-5), ({"rate": 3e-5}, 3e-5),
    ({"lora": None}, 1e-5),
])  # fmt: skip
def test_an_adapter_learns_at_a_rate_of_its_own(given, rate):
    learner = {"learning_rate": given["rate"]} if "rate" in given else {}
    policy = {"lora": given["lora"]} if "lora" in given else {}
    given = {"recipe": "r", "task": {"name": "addition"}, "policy": {"model": "m"} | policy, "learner": learner}
    config = make_config(given, "a test")
    assert config.learner.learning_rate == rate


def test_an_absent_option_leaves_the_recipe_alone(api, call):
    call("train", "arithmetic")
    assert api.calls[0].config == api.resolve("arithmetic", {})
    assert api.calls[0].folder is None and not api.calls[0].fresh


def test_smoke_is_tiny_and_what_the_user_says_wins(api, call):
    call("train", "arithmetic", "--smoke", "--rollout.num-prompts", "3")
    call("train", "cartpole", "--smoke", "--max-steps", "5")
    call("train", "arithmetic", "--smoke", "--model", "mine")
    words, control, mine = (asked.config for asked in api.calls)
    assert (words.max_steps, words.rollout.num_prompts, words.rollout.num_generations) == (2, 3, 4)
    assert words.rollout.max_completion_length == 8 and not words.evaluation.full_report
    assert words.policy.model == "tiny" and words.evaluation.num_problems == 4
    assert (control.max_steps, control.rollout.num_generations) == (5, 4)
    assert mine.policy.model == "mine"


def test_json_is_the_only_line_on_stdout_and_strictly_json(api, call):
    api.outcome = SUMMARY | {"score": float("nan"), "final": Path("runs/x/final"), "text": "\x1b[31m"}
    code, out, err = call("train", "arithmetic", "--json")
    assert code == 0 and out.count("\n") == 1 and "\x1b" not in out and "note: progress" in err
    loaded = json.loads(out, parse_constant=pytest.fail)
    assert loaded["score"] is None and loaded["final"] == "runs/x/final" and loaded["steps"] == 2


def test_dry_run_trains_nothing(api, call):
    code, out, _ = call("train", "arithmetic", "--dry-run")
    assert code == 0 and not api.calls
    assert "objective: A log π" in out and "weights: 2.5 MB" in out and "\x1b" not in out
    assert json.loads(call("train", "arithmetic", "--dry-run", "--json")[1])["memory"] == {"weights": 2_500_000}


def test_evaluate(api, call):
    api.outcome = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 20, "metrics": {"format": {"score": 1.0}}}
    code, out, _ = call("evaluate", "runs/x", "--data", "d.jsonl", "--recipe", "arithmetic", "--limit", "20")
    assert code == 0 and "score: 0.50" in out and "format: 1.00" in out
    assert vars(api.calls[0]) == {"run": "runs/x", "recipe": "arithmetic", "data": "d.jsonl", "seed": None, "limit": 20}


def test_sample_shows_hostile_text_harmlessly(api, call):
    api.outcome = [{"completion": "a\x1b]0;x\x07\nb"}, {"completion": "c"}]
    code, out, _ = call("sample", "runs/x", "--prompt", "--3 + 4", "--num", "2")
    assert code == 0 and "completion: a\\x1b]0;x\\x07↵b\n" in out
    assert (api.calls[0].prompt, api.calls[0].num) == ("--3 + 4", 2)


def test_recipes_and_version(api, call):
    code, out, _ = call("recipes")
    assert code == 0 and out.startswith("arithmetic\n  logpi train arithmetic\n  0.74 after 3 min")
    assert call("--version") == (0, f"{logpi.__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["train", "x", "--max-stps", "1"]])
def test_help_and_typing_errors_import_nothing_heavy(words):
    program = (
        f"import sys; from logpi import cli; code = cli._run({words!r}); "
        "assert not {'torch', 'transformers', 'pydantic', 'logpi.config'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "--max-stps" in words else 0), done.stderr


def test_every_option_is_described(call):
    for command in ("train", "evaluate", "sample"):
        text = call(command, "--help")[1]
        for line in text.splitlines():
            if line.startswith("│ ") and "--" in line[:8]:
                assert len(line.strip("│ *").split()) > 3, line


def test_a_reader_that_leaves_ends_the_program_quietly():
    program = (
        "import sys, types, logpi; from logpi.cli import main; sys.stdin.read(); "
        "logpi.api = types.SimpleNamespace(recipe_names=lambda: ['a'], recipe_header=lambda name: ''); "
        "main(['recipes'])"
    )
    python = [sys.executable, "-c", program]
    with subprocess.Popen(python, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=30) == 141 and process.stderr.read() == b""

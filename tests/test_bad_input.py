"""What can't be used is said with its place and its remedy, exit code 2, before anything is written."""

from __future__ import annotations

import json
from dataclasses import replace

import models
import pytest

from logpi import algorithms, api, cli
from logpi.config import make_config
from logpi.errors import InputError

TOML = """
max_steps = 2
[task]
name = "custom"
data = "{data}"
rewards = "{reward}"
heldout = 2
[policy]
model = "{model}"
dtype = "float32"
[rollout]
num_prompts = 2
num_generations = {generations}
max_completion_length = {length}
[evaluation]
full_report = false
"""
REWARDS = {
    "good": "return [float('1' in c) for c in completions]",
    "wrong_count": "return [1.0]",
    "nan": "return [float('nan')] * len(completions)",
    "text": "return ['high'] * len(completions)",
    "none": "return [None] * len(completions)",
    "raising": "raise KeyError('answer')",
}


def exit_code(arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def case(tmp_path, monkeypatch, tiny, capsys):
    """Return a function that trains from a configuration with one thing wrong: (exit code, what stderr says)."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(8)))

    def run(*options, reward="good", model=tiny, generations=4, length=4, data=data, extra=""):
        code = "".join(f"def {name}(prompts, completions, **kwargs):\n    {body}\n" for name, body in REWARDS.items())
        (tmp_path / "rewards.py").write_text(code)
        values = {"reward": f"{tmp_path}/rewards.py:{reward}", "model": model, "data": data}
        (tmp_path / "run.toml").write_text(TOML.format(generations=generations, length=length, **values) + extra)
        code = exit_code(["train", "run.toml", "--json", *options])
        return code, capsys.readouterr().err

    return run


def test_the_case_with_nothing_wrong_runs(case, tmp_path):
    code, said = case("--run", "good")
    assert code == 0, said
    assert json.loads((tmp_path / "good" / "summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "question.jsonl"}, ["question.jsonl", "questions.jsonl"]),
        ({"model": "smollm3"}, ['unknown model "smollm3"', "smollm2"]),
        ({"model": "."}, ["config.json", "save_pretrained"]),
        ({"generations": 1}, ["num_generations=1", "at least 2"]),
        ({"length": 400}, ["context of 192", "max_completion_length"]),
        ({"reward": "wrong_count"}, ["wrong_count", "1", "2"]),
        ({"reward": "nan"}, ['"nan"', "completion 0"]),
        ({"reward": "text"}, ["text", "high"]),
        ({"reward": "none"}, ["None"]),
        ({"reward": "raising"}, ["raising", "KeyError"]),
        ({"reward": "goood"}, ["goood", "good"]),
        ({"extra": "[learner]\nlearnin_rate = 1.0\n"}, ["learner.learnin_rate", "learning_rate"]),
        ({"extra": "[learner]\nlearning_rate = -1.0\n"}, ["learner.learning_rate", "-1.0", "greater than 0"]),
        ({"extra": "[learner]\nlearning_rate = inf\n"}, ["learner.learning_rate", "finite"]),
        ({"extra": "[algorithm]\nname = 'rlooo'\n"}, ['unknown algorithm "rlooo"', '"rloo"']),
        ({"extra": "[algorithm]\nname = 'rloo'\ngamma = 0.9\n"}, ['"rloo" has no option "gamma"']),
        ({"extra": "x = [1,,2]\n"}, ["run.toml", "not valid TOML", "line"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_configuration_and_bad_rewards(case, changes, words):
    code, said = case(**changes)
    assert code == 2, said
    assert all(word in said for word in words), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["questions.jsonl", "empty"]),
        ('{"prompt": "1+1="}\n{"prompt": \n', ["questions.jsonl:2"]),
        ('{"question": "1+1="}\n' * 4, ["prompt", "question"]),
    ],
    ids=["empty", "malformed", "column"],
)
def test_bad_data(case, tmp_path, content, words):
    other = tmp_path / "other" / "questions.jsonl"
    other.parent.mkdir()
    other.write_text(content)
    code, said = case(data=other)
    assert code == 2 and all(word in said for word in words), said
    assert not (tmp_path / "runs").exists()


def test_unknown_recipe_option_and_key(case, capsys):
    for arguments, word in (
        (["train", "cartpol"], '"cartpole"'),
        (["train", "cartpole", "--max-stps", "3"], "--max-steps"),
        (["train", "cartpole", "--learner.learnin-rate", "3"], "learning"),
    ):
        assert exit_code(arguments) == 2
        assert word in capsys.readouterr().err


def test_a_folder_that_is_not_ours_or_not_writable_is_left_alone(case, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    code, said = case("--run", "thesis")
    assert code == 2 and "not a logpi run" in said and "--run" in said
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    code, said = case("--run", "thesis/chapter.txt/run")
    assert code == 2 and "cannot be written" in said
    code, said = case("--run", "/proc/logpi")
    assert code == 2 and "cannot be written" in said


def test_a_tokenizer_without_eos_is_refused_and_one_without_pad_works(case, tmp_path, tiny):
    import shutil

    for name, removed in (("no_pad", "pad_token"), ("no_eos", "eos_token")):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop(removed)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if name == "no_eos":
            for file in ("config.json", "generation_config.json"):
                config = json.loads((folder / file).read_text())
                config["eos_token_id"] = None
                (folder / file).write_text(json.dumps(config))
    assert case("--run", "without-pad", model=str(tmp_path / "no_pad"))[0] == 0
    code, said = case(model=str(tmp_path / "no_eos"))
    assert code == 2 and "end-of-sequence" in said


def test_a_dry_run_shows_prompt_reward_and_memory_and_writes_nothing(case, tmp_path, capsys):
    case(data="missing.jsonl")  # leaves run.toml to be changed
    toml = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(toml.replace("missing.jsonl", str(tmp_path / "questions.jsonl")))
    assert exit_code(["train", "run.toml", "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["prompt_tokens"] and shown["memory"]["total"] > 0 and "good" in shown["reward_check"]
    assert not (tmp_path / "runs").exists()


# --- what the policy can't be combined with --------------------------------------------------------------------------

RUN = {"task": {"name": "addition"}, "policy": {"model": "x"}}


def problem_of(policy=(), algorithm=(), **rest):
    values = {**RUN, "policy": {"model": "x", **dict(policy)}, "algorithm": dict(algorithm), **rest}
    with pytest.raises(InputError) as raised:
        make_config(values, "run.toml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("policy", "algorithm", "words"),
    [
        ({"top_k": -1}, {}, ["policy.top_k = -1", "greater than or equal to 0"]),
        ({"top_p": 0}, {}, ["policy.top_p = 0", "greater than 0"]),
        ({"top_p": 1.5}, {}, ["policy.top_p = 1.5", "less than or equal to 1"]),
        ({"min_p": 1}, {}, ["policy.min_p = 1", "less than 1"]),
        ({"topk": 5}, {}, ['unknown key "policy.topk"', "top_k"]),
        (
            {"top_k": 5},
            {"num_minibatches": 2},
            ["policy.top_k=5", "2 updates a rollout", "num_minibatches", "both to 1"],
        ),
        ({"top_p": 0.9}, {"updates_per_rollout": 3}, ["policy.top_p=0.9", "3 updates a rollout", "turn top_k"]),
        ({"min_p": 0.1}, {"beta": 0.02}, ["policy.min_p=0.1", "algorithm.beta=0.02", "infinite", "set beta to 0"]),
    ],
    ids=str,
)
def test_what_can_not_be_combined_is_refused_with_reason_and_remedy(policy, algorithm, words):
    said = problem_of(policy, algorithm)
    assert said.startswith("run.toml: ") and all(word in said for word in words), said


def test_an_mlp_has_no_sampling_options_and_temperature_goes_with_everything():
    said = problem_of(
        {"kind": "mlp", "model": None, "top_k": 3, "temperature": 0.5}, task=None, environment="CartPole-v1"
    )
    assert "policy.temperature=0.5, policy.top_k=3" in said and "leave it out" in said
    policy, algorithm = {"model": "x", "temperature": 0.5}, {"beta": 0.1, "num_minibatches": 2}
    assert make_config({**RUN, "policy": policy, "algorithm": algorithm}).policy.temperature == 0.5


def test_a_beta_that_the_row_brings_along_is_refused_too(monkeypatch):
    monkeypatch.setitem(algorithms.ALGORITHMS, "own", replace(algorithms.get_algorithm("rloo"), name="own", beta=0.1))
    config = make_config({**RUN, "policy": {"model": "x", "top_k": 5}, "algorithm": {"name": "own"}})
    with pytest.raises(InputError, match=r"policy\.top_k=5 with algorithm\.beta=0\.1"):
        api.algorithm_of(config)

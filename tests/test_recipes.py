"""Every recipe's own command runs at its --smoke size, alone and after the recipe whose run it starts from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import data_files
import pytest

from logpi import api
from logpi.config import make_config, merge
from logpi.overrides import smoke

NAMES = api.recipe_names()
TINY_SIZE = 100_000  # parameters; SmolLM2 has 134 million


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Stand in a folder with small data files and an empty cache: a model that is not tiny isn't found there."""
    data_files.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGPI_CACHE", str(tmp_path / "cache"))
    return tmp_path


def command(name: str) -> list[str]:
    """Return the words of the command in a recipe's header, behind `logpi`."""
    [line] = [line for line in api.recipe_header(name).splitlines() if line.startswith("command:")]
    words = shlex.split(line.removeprefix("command:"))
    assert words[0] == "logpi" and words[2] == name
    return words[1:]


def run(call, name: str, *more: str) -> dict:
    folder = Path("runs") / name
    code, _, err = call(*command(name), "--smoke", "--threads", "1", "--run", str(folder), *more)
    assert code == 0, err
    summary, started = (json.loads((folder / file).read_text()) for file in ("summary.json", "run.json"))
    assert summary["status"] == "finished" and summary["steps"] == 2
    assert {"before", "after"} <= summary["evaluation"].keys() and Path(summary["final"]).is_dir()
    assert started["num_parameters"] < TINY_SIZE and summary["evaluation"]["after"]["n"] <= 4
    return summary


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_small(name, workplace, call):
    run(call, name)


@pytest.mark.parametrize("name", [n for n in NAMES if str(api.resolve(n).policy.model).startswith("runs/")])
def test_a_stage_starts_from_the_one_before(name, workplace, call):
    model = api.resolve(name).policy.model
    first = run(call, Path(model).parent.name)
    assert Path(model) == Path(first["final"]).relative_to(workplace)
    run(call, name, "--model", model)
    assert json.loads(Path("runs", name, "config.json").read_text())["policy"]["model"] == model


@pytest.mark.parametrize(
    ("section", "small"),
    [
        ({"reward": {"overlong_tokens": 64}, "rollout": {"num_spare_prompts": 9}}, {"reward": {"overlong_tokens": 8}}),
        ({"policy": {"model": "x", "lora": {}}}, {"policy": {"model": "tiny"}}),
        ({"policy": {}, "pretrain": {}}, {"pretrain": {"batch_size": 2}}),
        ({"pretrain": {}}, {"policy": {"model": "tiny"}, "pretrain": {"shape": None}}),
        ({"policy": {}, "sft": {"new": {"vocab_size": 999}}}, {"sft": {"new": {"vocab_size": 999}}}),
    ],
)
def test_a_small_configuration_is_valid_and_keeps_the_rest(section, small):
    """Merged over the configuration it came from, as the command does."""
    values = {"task": {"name": "text"}, "policy": {"model": "x"}} | section
    config = make_config(values)
    found = make_config(merge(values, smoke(config)))
    for name, options in small.items():
        for option, value in options.items():
            left = getattr(getattr(found, name), option)
            assert left == value if not isinstance(value, dict) else value.items() <= left.model_dump().items()
    assert found.max_steps == 2 and found.evaluation.num_problems == 4 and found.seed == config.seed

"""The effective objective is stated whole, and what differs between two runs is said."""

import json

import models
import pytest

import logpi
from logpi import api
from logpi.algorithms import ALGORITHMS
from logpi.errors import InputError
from logpi.recipe_diff import recipe_diff


def details(recipe="smollm2-addition", rollout=None, **algorithm):
    return api.objective_of(api.resolve(recipe, {"algorithm": algorithm, "rollout": rollout or {}}))[
        "objective_details"
    ]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_is_stated_whole(name):
    row = ALGORITHMS[name]
    found = details(name=name, rollout={"solution_tokens": 3} if row.uses_solutions else {})
    assert set(found["options"]) == row.option_names()
    assert (found["source"], found["deviations"]) == (row.source, row.deviations)
    for cell in ("advantage", "surrogate", "reduction"):
        assert found[cell]["name"] == getattr(row, cell).__name__ and "(…)" not in found[cell]["formula"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ({"name": "reinforce"}, None),
        ({"name": "grpo"}, {"low": 0.8, "high": 1.2}),
        ({"name": "grpo", "epsilon_high": 0.28}, {"low": 0.8, "high": 1.28}),
        ({"name": "ppo", "epsilon": 0.1}, {"low": 0.9, "high": 1.1}),
        ({"name": "gspo"}, {"low": 1 - 3e-4, "high": 1 + 4e-4}),
        ({"name": "cispo"}, {"low": None, "high": 5.0}),
    ],
)
def test_clip_bounds_are_those_that_the_surrogate_cuts_at(algorithm, clip):
    assert details(**algorithm)["clip"] == clip


def test_what_was_set_otherwise_than_the_row_says_is_named():
    assert details(name="grpo")["set_otherwise"] == {}
    found = details(name="grpo", epsilon=0.1, beta=0.02, updates_per_rollout=2)
    assert found["set_otherwise"] == {"beta": {"row": 0.0, "run": 0.02}, "epsilon": {"row": 0.2, "run": 0.1}}
    assert found["kl"]["beta"] == 0.02 and found["clip_can_bind"] and not details(name="grpo")["clip_can_bind"]
    exact = details(name="grpo", beta=0.02, kl="exact_in_loss")["kl"]
    assert exact["place"] == "exact_in_loss" and "in each visited state" in exact["gradient"]
    assert details(name="dr_grpo")["options"]["budget"] == 12  # the longest completion of the recipe
    assert details("cartpole")["policy_transform"] is None and details("cartpole")["standardise_advantages"]


def test_a_run_and_a_dry_run_say_the_same(tmp_path):
    config = api.resolve("cartpole", {"max_steps": 1, "rollout": {"num_generations": 2}})
    logpi.train("cartpole", max_steps=1, rollout={"num_generations": 2}, run=tmp_path / "run")
    recorded, said = json.loads((tmp_path / "run" / "run.json").read_text()), api.dry_run(config)
    for key in ("objective", "objective_details"):
        assert recorded[key] == said[key]


def test_a_difference_is_a_line(call, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('environment = "CartPole-v1"\npolicy.kind = "mlp"\nalgorithm = { name = "a2c", gamma = 0.9 }\n')
    code, out, _ = call("recipes", "--diff", "cartpole", str(file))
    lines = out.splitlines()
    assert code == 0 and "algorithm.gamma: 0.98 → 0.9" in lines and "learner.learning_rate: 0.002 → 1e-05" in lines
    assert lines[-2].startswith("objective of cartpole: maximise") and "n_steps" in lines[-1]
    found = json.loads(call("recipes", "--diff", "cartpole", str(file), "--json")[1])
    assert {"key": "algorithm.name", "a": "ppo", "b": "a2c"} in found["differences"]
    assert not {row["key"] for row in found["differences"]} & {"seed", "environment"}


def test_a_section_that_one_side_lacks_is_shown_by_its_keys(tmp_path):
    file = tmp_path / "smollm2-addition.toml"
    lora = "[policy.lora]\nr = 4\n"
    file.write_text(api.recipe_path("smollm2-addition").read_text() + lora)
    found = recipe_diff("smollm2-addition", str(file))
    keys = [row["key"] for row in found["differences"]]
    assert keys == ["learner.learning_rate", "policy.lora.lora_alpha", "policy.lora.r", "policy.lora.target_modules"]
    assert "objective" not in found


def test_a_run_is_compared_by_its_folder_and_equal_ones_are_said_to_be(call, tmp_path):
    run = tmp_path / "run"
    call("train", "cartpole", "--max-steps", "1", "--seed", "3", "--run", str(run))
    code, out, _ = call("recipes", "--diff", "cartpole", str(run))
    assert code == 0 and out.splitlines() == ["max_steps: 400 → 1", "seed: 0 → 3"]
    assert call("recipes", "--diff", str(run), str(run)) == (0, f"{run} and {run}: no difference\n", "")
    assert json.loads(call("recipes", "--diff", str(run), str(run), "--json")[1]) == {"differences": []}


def test_data_given_in_python_can_be_compared(tmp_path):
    tiny = models.write(tmp_path / "tiny", "llama")
    rows = [{"prompt": f"{n}=", "answer": str(n)} for n in range(12)]

    def right(completions, answer, **columns):
        return [float(a == b) for a, b in zip(completions, answer)]

    small = {"num_prompts": 1, "num_generations": 2, "max_completion_length": 2}
    quiet = {"evaluation": {"full_report": False}, "task": {"heldout": 2}, "rollout": small}
    for seed in (0, 1):
        run = tmp_path / str(seed)
        logpi.train(model=tiny, data=rows, rewards=right, max_steps=1, seed=seed, run=run, **quiet)
    found = recipe_diff(str(tmp_path / "0"), str(tmp_path / "1"))
    assert found == {"differences": [{"key": "seed", "a": 0, "b": 1}]}


def test_what_is_no_recipe_is_refused_with_a_suggestion(call, tmp_path):
    code, out, err = call("recipes", "--diff", "cartpole", "cartpol")
    assert (code, out) == (2, "") and 'unknown recipe "cartpol". Did you mean "cartpole"?' in err
    assert "without config.json" in call("recipes", "--diff", "cartpole", str(tmp_path))[2]
    code, _, err = call("recipes", "--diff", "cartpole")
    assert code == 2 and "--diff" in err
    with pytest.raises(InputError, match="no such file"):
        recipe_diff("cartpole", str(tmp_path / "none.toml"))


def test_recipes_as_json(call):
    found = json.loads(call("recipes", "--json")[1])["recipes"]
    assert [row["name"] for row in found] == api.recipe_names() and all(row["header"] for row in found)

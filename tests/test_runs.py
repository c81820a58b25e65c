"""Whole runs on tiny models: a user's own reward, LoRA, going on after a kill, what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import models
import pytest
import torch
from safetensors.torch import load_file

import logpi
from logpi import api, checkpoint
from logpi.console import make_observer
from logpi.errors import InputError, NonFiniteError

SMALL = {
    "rollout": {"num_prompts": 2, "num_generations": 4, "max_completion_length": 6},
    "learner": {"learning_rate": 1e-3},
    "evaluation": {"every_steps": 2, "full_report": False},
    "checkpoint": {"every_steps": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(12)))
    return file


def contains_answer(prompts, completions, **kwargs):
    """A reward as written for TRL."""
    answers = kwargs["answer"]
    return [float(answer in text) + 0.01 * len(text) for text, answer in zip(completions, answers, strict=True)]


def train(questions, tiny, run, **changes):
    options = {**SMALL, **changes}
    quiet = make_observer(json=True)
    return logpi.train(
        model=tiny, data=str(questions), rewards=contains_answer, run=run, seed=0, observer=quiet, **options
    )


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_reward_written_for_trl_trains_and_the_result_loads_in_transformers(questions, tiny, tmp_path, lora):
    from transformers import AutoModelForCausalLM

    policy = {"dtype": "float32", **({"lora": lora} if lora else {})}
    summary = train(questions, tiny, tmp_path / "run", max_steps=3, policy=policy)
    assert summary["status"] == "finished" and summary["steps"] == 3
    assert set(summary["evaluation"]["after"]) >= {"score", "low", "high", "n"}
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert max(row["mismatch/max"] for row in metrics) == 0.0
    trained = AutoModelForCausalLM.from_pretrained(summary["final"])
    start = AutoModelForCausalLM.from_pretrained(tiny)
    changed = [n for n, p in trained.named_parameters() if not torch.equal(p, start.get_parameter(n))]
    assert changed and any(row["grad_norm"] > 0 for row in metrics)
    if lora:
        adapter = tmp_path / "run" / "final" / "adapter"
        assert (adapter / "adapter_config.json").is_file() and (adapter / "adapter_model.safetensors").is_file()
        assert not any("embed" in name for name in changed)


@pytest.mark.parametrize("algorithm", ["reinforce", "reinforce_to_go", "reinforce_baseline", "rloo", "grpo", "ppo"])
def test_every_row_of_the_table_trains_a_language_model(questions, tiny, tmp_path, algorithm):
    options = {"name": algorithm, "beta": 0.01, "updates_per_rollout": 2, "num_minibatches": 2}
    summary = train(questions, tiny, tmp_path / "run", max_steps=2, algorithm=options)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["steps"] == 2 and all("kl" in row for row in rows)
    assert rows[0]["mismatch/max"] == 0.0 and rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_embedded_rows_of_cartpole_and_language_run_with_the_same_command(tmp_path):
    summary = api.run(
        api.resolve("cartpole", {"max_steps": 2, "evaluation": {"num_episodes": 4}}),
        folder=tmp_path / "cartpole",
        observer=make_observer(json=True),
    )
    assert summary["steps"] == 2 and (tmp_path / "cartpole" / "final" / "mlp.safetensors").is_file()


# --- going on ---------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
import logpi
from logpi.console import make_observer
import torch; torch.set_num_threads(1)
def right(prompts, completions, answer, **kwargs):
    return [float(a in c) + 0.01 * len(c) for c, a in zip(completions, answer)]
logpi.train(model=sys.argv[1], data=sys.argv[2], rewards=right, run=sys.argv[3], max_steps=6, seed=3,
            observer=make_observer(json=True), **json.loads(sys.argv[4]))
"""


def start(questions, tiny, run):
    command = [sys.executable, "-c", SCRIPT, tiny, str(questions), str(run), json.dumps(SMALL)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_killed_and_started_again_it_ends_bit_for_bit_like_the_uninterrupted_run(questions, tiny, tmp_path):
    assert start(questions, tiny, tmp_path / "whole").wait(120) == 0
    process = start(questions, tiny, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-0000000[2-4]")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert start(questions, tiny, tmp_path / "killed").wait(120) == 0
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "final/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    rows = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_more_steps_extend_a_finished_run_and_another_configuration_is_refused(questions, tiny, tmp_path):
    train(questions, tiny, tmp_path / "run", max_steps=2)
    assert train(questions, tiny, tmp_path / "run", max_steps=2)["steps"] == 2  # finished: the summary again
    assert train(questions, tiny, tmp_path / "run", max_steps=3)["steps"] == 3
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"another configuration:\n  learner.learning_rate: 0.001 → 0.5\nname another"):
        train(questions, tiny, tmp_path / "run", max_steps=3, learner={"learning_rate": 0.5})
    assert train(questions, tiny, tmp_path / "run", max_steps=1, fresh=True)["run"] == str(tmp_path / "run-2")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(tmp_path):
    for step in (1, 2, 3):
        state = checkpoint.TrainState(step, {"w": torch.full((3,), float(step))}, {"n": step})
        checkpoint.save(tmp_path, state, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    file = tmp_path / "step-00000003" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    state, notes = checkpoint.load_newest(tmp_path)
    assert state is not None and state.step == 2 and state.numbers == {"n": 2}
    assert torch.equal(state.tensors["w"], torch.full((3,), 2.0))
    assert "state.safetensors does not match its hash" in notes[0] and (tmp_path / "damaged-step-00000003").is_dir()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    bad = checkpoint.TrainState(1, {"w": torch.tensor([1.0, float("nan")])}, {})
    with pytest.raises(NonFiniteError, match="w is not finite at step 1"):
        checkpoint.save(tmp_path, bad, keep=1)
    assert not list(tmp_path.iterdir())


def test_the_optimiser_goes_on_where_it_was(questions, tiny, tmp_path):
    train(questions, tiny, tmp_path / "run", max_steps=2)
    tensors = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "state.safetensors")
    names = {key.split("/")[0] for key in tensors}
    assert names == {"parameter", "optimizer"}
    assert any(key.startswith("optimizer/exp_avg_sq/") and tensors[key].abs().sum() > 0 for key in tensors)

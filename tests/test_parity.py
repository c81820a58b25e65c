"""The agreement of sampler and learner, tried at the start of a run and insisted on with --strict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from models import NATIVE_BF16, policy, write

from logpi import api, cli, session
from logpi.errors import MismatchError
from logpi.experience import TaskExperience
from logpi.rollout import self_test as tried
from logpi.rollout.self_test import SAME_BITS, self_test

KINDS = ["gpt2", "llama", "qwen3", "gpt_neox"]
DTYPES = ["float32"] + ["bfloat16"] * NATIVE_BF16


# --- the self-test -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_where_the_bits_agree(kind, dtype):
    found = self_test(policy(kind, getattr(torch, dtype)))
    assert found.is_exact and found.line() == SAME_BITS


def leaning(function):
    """Return a function whose rows depend, in the last bits, on how many there are."""
    return lambda x, *rest, **more: function(x, *rest, **more) * (1 + 2e-7 * x.numel() ** 0.5)


@pytest.mark.parametrize(("part", "named"), [("layers.1.mlp.down_proj", "product 32×48"), ("norm", "LlamaRMSNorm 32")])
def test_it_names_the_layer_that_depends_on_the_batch(part, named):
    tiny = policy("llama")
    layer = tiny.sampler.base_model.get_submodule(part)
    layer.forward = leaning(layer.forward)
    found = self_test(tiny)
    assert found.dependent == (named,) and not found.is_exact and named in found.line()


def test_it_sees_an_attention_and_a_head_that_depend_on_the_batch(monkeypatch):
    tiny = policy("llama")
    real = tried.invariant_attention

    def later_queries_round_otherwise(module, query, *rest, **more):
        out, nothing = real(module, query, *rest, **more)
        return out * (1 + 1e-6 * (query.shape[2] > 1)), nothing

    monkeypatch.setattr(tried, "invariant_attention", later_queries_round_otherwise)
    monkeypatch.setattr(tiny, "next_token_logits", leaning(tiny.next_token_logits))
    assert self_test(tiny).dependent == ("attention", "head")


def test_it_sees_a_difference_that_no_part_shows(monkeypatch):
    """A learner that loses the first token of a prompt: each part is right, the whole is not."""
    tiny = policy("llama")
    real = tiny.evaluate

    def forgetful(actions, mask, truncated, inputs):
        return real(actions, mask, truncated, tuple(prompt[1:] if len(prompt) > 8 else prompt for prompt in inputs))

    monkeypatch.setattr(tiny, "evaluate", forgetful)
    found = self_test(tiny)
    assert found.dependent == () and found.difference > 1e-3


# --- strict runs -------------------------------------------------------------------------------------------------

PROMPTS = [{"prompt": f"{n}+{'1' * (n % 7)}="} for n in range(24)]  # ragged


class Notes:
    """An observer that remembers what was said."""

    def __init__(self):
        self.info, self.said = {}, []

    def start(self, info):
        self.info = info

    def note(self, text):
        self.said.append(text)

    def evaluation(self, step, result): ...
    def step(self, metrics, timing, sample): ...
    def finish(self, summary): ...


def varied(completions, **_):
    return [(7 * len(text) + sum(map(ord, text))) % 11 / 10 for text in completions]


def strict_run(tiny, folder, *, steps=3, strict=True, lora=None, dtype="float32", micro_batch_tokens=200, threads=1):
    notes = Notes()
    policy = {"dtype": dtype} | ({"lora": lora} if lora else {})
    try:
        summary = api.train(
            model=tiny, data=PROMPTS, rewards=varied, run=folder, max_steps=steps, strict=strict, threads=threads,
            policy=policy, rollout={"num_prompts": 3, "num_generations": 4, "max_completion_length": 12},
            learner={"learning_rate": 3e-3, "micro_batch_tokens": micro_batch_tokens}, observer=notes,
            evaluation={"full_report": False, "every_steps": None}, checkpoint={"every_steps": 1},
        )  # fmt: skip
    finally:
        torch.set_num_threads(1)
    return summary, notes


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return {kind: write(tmp_path_factory.mktemp("models") / kind, kind) for kind in KINDS}


def test_a_strict_run_says_so_and_goes_through(tiny, tmp_path):
    summary, notes = strict_run(tiny["llama"], tmp_path / "run")
    assert summary["status"] == "finished" and notes.info["parity"] == SAME_BITS
    assert [row["mismatch/max"] for row in rows(tmp_path / "run")] == [0.0] * 3
    assert all(row["grad_norm"] > 0 for row in rows(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "micro_batch_tokens"), [(1, 30), (1, 200), (2, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_strict_steps(tiny, tmp_path, kind, lora, dtype, threads, micro_batch_tokens):
    options = dict(lora=lora, dtype=dtype, threads=threads, micro_batch_tokens=micro_batch_tokens)
    summary, _ = strict_run(tiny[kind], tmp_path / "run", steps=20, **options)
    assert summary["steps"] == 20 and all(row["mismatch/max"] == 0.0 for row in rows(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "threads"), [("bfloat16", 2), ("bfloat16", 1), ("float32", 2)])
def test_twenty_strict_steps_of_the_addition_recipe(tmp_path, dtype, threads):
    if dtype not in DTYPES:
        pytest.skip("this processor does not compute bfloat16 natively")
    try:
        summary = api.train(
            "smollm2-addition", run=tmp_path / "run", max_steps=20, strict=True, threads=threads, observer=Notes(),
            policy={"dtype": dtype}, evaluation={"full_report": False, "every_steps": None},
        )  # fmt: skip
    finally:
        torch.set_num_threads(1)
    assert summary["steps"] == 20 and all(row["mismatch/max"] == 0.0 for row in rows(tmp_path / "run"))


def test_one_unit_in_the_last_place_stops_a_strict_run_before_it_updates(tiny, tmp_path, monkeypatch):
    real = TaskExperience.sample

    def planted(self, step, version, places):
        trajectories = real(self, step, version, places)
        if step == 1:
            changed = trajectories[5].behavior_log_probs.clone()
            changed[-1] = torch.nextafter(changed[-1], torch.tensor(0.0))
            trajectories[5] = replace(trajectories[5], behavior_log_probs=changed)
        return trajectories

    monkeypatch.setattr(TaskExperience, "sample", planted)
    with pytest.raises(MismatchError, match=r"step 2: sampler and learner differ by up to [1-9].*e-0\d in a log-prob"):
        strict_run(tiny["llama"], tmp_path / "run")
    assert MismatchError.exit_code == 5 and len(rows(tmp_path / "run")) == 1
    summary, _ = strict_run(tiny["llama"], tmp_path / "run", strict=False)  # the same run, measured
    found = [row["mismatch/max"] for row in rows(tmp_path / "run")]
    assert summary["steps"] == 3 and found[0] == found[2] == 0.0 < found[1] < 1e-5


def test_where_the_self_test_fails_the_run_says_so_and_strict_refuses(tiny, tmp_path, monkeypatch):
    failed = tried.SelfTest(("product 32×48",), 1e-6)
    monkeypatch.setattr(session, "self_test", lambda policy: failed)
    summary, notes = strict_run(tiny["llama"], tmp_path / "run", strict=False)
    assert summary["steps"] == 3 and failed.line() in notes.info["notes"][0] and notes.info["parity"] == failed.line()
    with pytest.raises(MismatchError, match=r"--strict: .*differ by up to 1.0e-06; .*product 32×48.*without --strict"):
        strict_run(tiny["llama"], tmp_path / "other")


def test_the_option_is_a_word_on_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "self_test", lambda policy: tried.SelfTest((), 1e-7))
    words = ["train", "smollm2-addition", "--model", tiny["llama"], "--run", str(tmp_path / "run"), "--smoke"]
    with pytest.raises(SystemExit) as exit:
        cli.main([*words, "--strict", "--threads", "1"])
    assert exit.value.code == 5 and "--strict" in capsys.readouterr().err

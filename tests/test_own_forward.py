"""Networks that keep their forward whole: transformers' `generate` samples, the module learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import NATIVE_BF16, gradient, relative_error, rewarded, tokenizer

from logpi import api
from logpi.config import make_config
from logpi.errors import InputError, MismatchError
from logpi.policies.loading import load_causal_lm
from logpi.policies.own_forward import OwnForward
from logpi.policies.token_log_probs import Transform, softmax
from logpi.randomness import Stream, uniforms
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.rollout.sampling import draw

KINDS = {
    "Mamba": dict(num_hidden_layers=2, state_size=8),
    "Bloom": dict(n_layer=2, n_head=4),
    "RecurrentGemma": dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
                           intermediate_size=48, lru_width=32, attention_window_size=64, logits_soft_cap=None),
}  # fmt: skip
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["in_proj", "x_proj", "query_key_value"]}  # of Mamba and of Bloom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that writes a tiny network of a kind with a tokenizer of characters."""

    def write(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind)
        made = tokenizer()
        made.save_pretrained(path)
        config = getattr(transformers, f"{kind}Config")(vocab_size=len(made), hidden_size=32, **KINDS[kind])
        config.eos_token_id, config.bos_token_id, config.pad_token_id = 0, None, None
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(4)  # so that tokens matter
        module.generation_config.repetition_penalty = 5.0  # which changes the policy, and is not asked for
        module.save_pretrained(path)
        return path

    return write


@pytest.fixture(scope="module", params=["Mamba", "Bloom"])
def folder_of_kind(folder, request):
    return folder(request.param)


def prompts_of(policy):
    return [TokenPrompt(i, policy.tokenizer(text, return_tensors="pt").input_ids[0]) for i, text in enumerate(
        ("1+2=", "What is 12+30?", "7="))]  # fmt: skip


@pytest.mark.parametrize("transform", [Transform(), Transform(temperature=0.7, top_k=5)])
def test_tokens_and_log_probs_are_those_of_the_modules_whole_forward(folder_of_kind, transform):
    policy = load_causal_lm(str(folder_of_kind), dtype="float32", transform=transform)
    assert isinstance(policy, OwnForward)
    policy.eos_token_ids += tuple(range(3, 9))  # so that completions end, at different times
    found = generate(policy, prompts_of(policy), 5, Sampling(12, seed=5), step=2)
    assert len({len(t) for t in found}) > 2 and any(t.terminated for t in found)
    for t in found:
        text = t.inputs
        for position, token in enumerate(t.actions):
            with torch.no_grad():
                logits = policy.network(text[None]).logits[0, -1:]
            pi, _ = softmax(logits, transform)
            assert int(draw(pi.weights, uniforms(5, Stream.ROLLOUT, 2, t.prompt_uid, t.sample, [position]))) == token
            assert float(pi.log_probs(token[None])) == pytest.approx(float(t.behavior_log_probs[position]), abs=1e-4)
            text = torch.cat([text, token[None]])
        assert int(t.actions[-1]) in policy.eos_token_ids or (len(t) == 12 and t.truncated)


def test_how_completions_are_batched_changes_no_token(folder_of_kind):
    policy = load_causal_lm(str(folder_of_kind), dtype="float32")
    once, in_parts = (generate(policy, prompts_of(policy), 11, Sampling(8, max_rows=rows)) for rows in (128, 8))
    assert all(torch.equal(a.actions, b.actions) for a, b in zip(once, in_parts, strict=True))


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_gradient_is_that_of_the_modules_own_log_probs(folder_of_kind, lora):
    policy = load_causal_lm(str(folder_of_kind), dtype="float32", lora=lora)
    trajectories = rewarded(generate(policy, prompts_of(policy), 4, Sampling(10)))
    loss, found = gradient(policy, trajectories, "reinforce")
    parameters = policy.trainable_parameters()
    expected = torch.zeros(())
    for t in trajectories:
        logits = policy.network(torch.cat([t.inputs, t.actions])[None]).logits[0, len(t.inputs) - 1 : -1]
        log_probs = torch.log_softmax(logits, -1).gather(1, t.actions[:, None])[:, 0]
        expected = expected - log_probs.sum() * t.rewards.sum() / len(trajectories)
    slopes = torch.autograd.grad(expected, list(parameters.values()))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert relative_error(found, dict(zip(parameters, slopes, strict=True))) < 1e-3


@pytest.mark.parametrize("dtype", ["float32"] + ["bfloat16"] * NATIVE_BF16)
def test_a_run_says_why_learns_and_goes_on(folder, tmp_path, dtype):
    config = make_config(
        {"recipe": "custom", "task": {"name": "addition", "max_operand": 3, "num_heldout": 4}, "threads": 1,
         "policy": {"model": str(folder("Mamba")), "dtype": dtype}, "max_steps": 2,
         "rollout": {"num_prompts": 2, "num_generations": 4, "max_completion_length": 4},
         "reward": {"timeout_seconds": 60}, "checkpoint": {"every_steps": 1}},
        "test",
    )  # fmt: skip
    made = api.run(config, folder=tmp_path / "run", observer=None)
    assert made["status"] == "finished"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and 0 <= rows[0]["mismatch/max"] < (0.5 if dtype == "bfloat16" else 1e-4)
    parity = json.loads((tmp_path / "run" / "run.json").read_text())["parity"]
    assert parity.startswith("MambaForCausalLM has no attention that can be replaced")
    loaded = load_causal_lm(made["final"], dtype="float32")
    assert isinstance(loaded, OwnForward)


def test_a_strict_run_is_refused(folder, tmp_path):
    config = make_config(
        {"recipe": "custom", "task": {"name": "addition", "max_operand": 3, "num_heldout": 4}, "strict": True,
         "policy": {"model": str(folder("Mamba"))}, "max_steps": 2},
        "test",
    )  # fmt: skip
    with pytest.raises(MismatchError, match="--strict: MambaForCausalLM has no attention"):
        api.run(config, folder=tmp_path / "run", observer=None)


def test_a_forward_that_does_more_is_refused(folder):
    KINDS["RecurrentGemma"]["logits_soft_cap"] = 0.5
    with pytest.raises(InputError, match="its forward does something that logpi does not compute"):
        load_causal_lm(str(folder("RecurrentGemma")), dtype="float32")


def spread(completions, **columns):
    """A reward that differs between completions."""
    return [sum(map(ord, c if isinstance(c, str) else c[0]["content"])) / 500 for c in completions]


def test_a_kl_to_the_start_is_trained_against_a_copy(folder, tmp_path):
    config = make_config(
        {"recipe": "custom",
         "task": {"name": "custom", "data": [{"prompt": f"{i}="} for i in range(8)], "rewards": spread},
         "threads": 1, "policy": {"model": str(folder("Bloom")), "dtype": "float32"}, "max_steps": 2,
         "learner": {"learning_rate": 0.01},
         "algorithm": {"name": "grpo", "beta": 0.1},
         "rollout": {"num_prompts": 2, "num_generations": 4, "max_completion_length": 4}},
        "test",
    )  # fmt: skip
    api.run(config, folder=tmp_path / "run", observer=None)
    first, second = (json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert abs(first["kl"]) < 1e-6 < second["kl"]  # the policy has moved, its copy has not

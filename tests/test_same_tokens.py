"""How completions are batched changes no token and no bit: batch limits, slots of the cache, micro-batches."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from models import NATIVE_BF16, policy, prompts

from logpi.algorithms import get_algorithm
from logpi.learner import Learner
from logpi.policies.embedded import WHEEL
from logpi.policies.loading import load_causal_lm
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import make_batch

DTYPES = ["float32"] + ["bfloat16"] * NATIVE_BF16
NARROW = dict(max_rows=8, max_keys=2**20)  # one group of 8 at a time
LIMITS = [NARROW, dict(max_rows=40, max_keys=2**20), dict(max_rows=10**6, max_keys=16 * 128)]  # by rows, by keys
WIDE = dict(max_rows=10**6, max_keys=10**9)  # all at once


def check(policy, asked, num_generations, max_new_tokens, limits, micro_batches):
    """Sample under each limit and score in each size of micro-batch: the same tokens, the same bits."""
    sampling = Sampling(max_new_tokens, seed=3, **WIDE)
    expected = generate(policy, asked, num_generations, sampling)
    assert len({len(t) for t in expected}) > 1  # some end early: slots are freed and filled
    for limit in limits:
        found = generate(policy, asked, num_generations, replace(sampling, **limit))
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.actions, b.actions) and torch.equal(a.behavior_log_probs, b.behavior_log_probs)
            assert torch.equal(a.entropies, b.entropies) and a.terminated == b.terminated
    batch = make_batch([replace(t, rewards=torch.zeros(len(t))) for t in expected])
    for tokens in micro_batches:
        learner = Learner(policy, get_algorithm("ppo"), learning_rate=1e-3, micro_batch_tokens=tokens)
        scored = learner.annotate(batch, several_updates=True).old_log_probs
        assert torch.equal(scored, torch.where(batch.mask, batch.behavior_log_probs, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_tiny_model(kind, dtype):
    tiny = policy(kind, getattr(torch, dtype), value_head=True, temperature=0.8)
    check(tiny, prompts([3, 60, 17, 33, 5, 64, 1, 20]), 8, 30, LIMITS, (1, 300, 10**9))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec(WHEEL) is None, reason="the wheel with SmolLM2 is not installed")
@pytest.mark.parametrize("dtype", DTYPES)
def test_smollm2_with_512_completions(dtype):
    """By `python -m pytest tests/test_same_tokens.py -m slow`, about two minutes on 2 cores."""
    smollm = load_causal_lm("smollm2-q4", dtype=dtype, value_head=True)
    asked = []
    for i in range(64):
        chat = [{"role": "user", "content": f"What is {i}+{7 * i % 50}? Answer with the number."}]
        text = smollm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        asked.append(TokenPrompt(i, torch.tensor(smollm.tokenizer(text, add_special_tokens=False)["input_ids"])))
    limits = [dict(max_rows=64, max_keys=2**20), dict(max_rows=10**6, max_keys=200 * 128)]
    check(smollm, asked, 8, 12, limits, (700, 4096))

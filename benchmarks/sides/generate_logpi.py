"""Sampling by logpi: completions of an exact length."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from texts import prompts

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import serve

from logpi.policies.loading import load_causal_lm
from logpi.rollout.engine import Sampling, TokenPrompt, generate

torch.set_num_threads(2)
policy = load_causal_lm(sys.argv[1])
policy.eos_token_ids = ()  # every completion is as long as asked for


def work(asked: dict[str, Any]) -> dict[str, Any]:
    groups = [TokenPrompt(i, torch.tensor(ids)) for i, ids in enumerate(prompts(policy.tokenizer, asked["prompts"]))]
    start = time.perf_counter()
    found = generate(policy, groups, asked["generations"], Sampling(asked["new_tokens"]))
    return {"seconds": time.perf_counter() - start, "tokens": sum(len(t) for t in found)}


serve(work)

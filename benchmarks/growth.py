"""How a step's time grows: `python benchmarks/growth.py [--model smollm2-q4] [--rounds 3] [--dtype auto]`.

A training step (sampling, gradient, update) of 8 prompts × 8 completions of 64 tokens, set against one with twice the
completions, one with twice their length, one with twice the prompts, in turns in one process. No token ends a
completion here, so all have their full length; rewards are random, so every group has a gradient.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from side_by_side import HERE, report, shown, spread

from logpi.algorithms import get_algorithm
from logpi.batching import minibatches
from logpi.credit import assign_credit
from logpi.learner import Learner
from logpi.policies.loading import load_causal_lm
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import make_batch

sys.path.append(str(HERE / "sides"))
from texts import prompts

SIZES = {  # prompts, completions of each, tokens of each
    "8 prompts × 8 completions × 64 tokens": (8, 8, 64),
    "twice the completions": (8, 16, 64),
    "twice the length": (8, 8, 128),
    "twice the prompts": (16, 8, 64),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-q4")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--dtype", default="auto", help="of products: bfloat16, float32; auto: what is native")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--output", type=Path, help="a JSON file for the figures")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    policy = load_causal_lm(chosen.model, dtype=chosen.dtype)
    policy.eos_token_ids = ()
    learner = Learner(policy, get_algorithm("dapo"), learning_rate=1e-6, micro_batch_tokens=1024)
    found: dict[str, list[float]] = {name: [] for name in SIZES}
    for number in range(chosen.rounds + 1):
        for name, size in SIZES.items():
            seconds = step(learner, *size, number)
            if number:  # the first of each warms up
                found[name].append(seconds)
    base = found[next(iter(SIZES))]
    result: dict[str, Any] = {}
    for name, seconds in found.items():
        ratio = statistics.median(s / b for s, b in zip(seconds, base, strict=True))
        result[name] = {"seconds": spread(seconds), "ratio": ratio}
        print(f"{name:<40}{shown(spread(seconds), ' s'):<22} ×{ratio:.2f}", flush=True)
    report({"rounds": chosen.rounds, "sizes": result}, chosen.output)


def step(learner: Learner, num_prompts: int, num_generations: int, length: int, number: int) -> float:
    """Take a step of this size; return its seconds."""
    policy: Any = learner.policy
    asked = [TokenPrompt(i, torch.tensor(tokens)) for i, tokens in enumerate(prompts(policy.tokenizer, num_prompts))]
    draws = torch.Generator().manual_seed(number)
    start = time.perf_counter()
    drawn = generate(policy, asked, num_generations, Sampling(length), step=number)
    rewards = torch.zeros(len(drawn), length)
    rewards[:, -1] = torch.rand(len(drawn), generator=draws)
    rewarded = [replace(t, rewards=row) for t, row in zip(drawn, rewards, strict=True)]
    batch = assign_credit(learner.algorithm, learner.annotate(make_batch(rewarded), several_updates=False))
    learner.update(learner.backward(next(minibatches(batch, learner.algorithm.token_weights))), number)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

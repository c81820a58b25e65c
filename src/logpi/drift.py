"""How far training has taken a policy from the one that it began with.

No token is cut in any of it (top-k, top-p, min-p): one that only one of the two keeps would make a divergence infinite.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from logpi.batching import micro_batches
from logpi.losses import kl_k3
from logpi.masking import masked_mean
from logpi.policies.base import Reference, scatter
from logpi.policies.causal_lm import CausalLM
from logpi.policies.token_log_probs import Transform
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import Batch, Trajectory, make_batch

MAX_TOKENS = 2048  # in one forward

UNRELATED = tuple(
    f"{verb} {topic}."
    for verb in ("Write two sentences about", "Explain in simple words")
    for topic in (
        "the weather in spring",
        "how bread is baked",
        "a walk along the sea",
        "why cats sleep so much",
        "the history of the bicycle",
        "how a library works",
        "a good breakfast",
        "the colours of autumn",
        "what a neighbour is",
        "how to learn a song",
    )
)  # 20 prompts that no task trains on: what training changed elsewhere


@torch.no_grad()
def kl_to_start(start: CausalLM, policy: CausalLM, prompts: Sequence[Tensor], sampling: Sampling) -> float:
    """Return KL(π_start ‖ π) a token, in nats (k3), on the start's completions of the prompts, of 32 tokens each."""
    start, policy = _uncut(start, policy), _uncut(policy, policy)
    ready = [TokenPrompt(uid, tokens) for uid, tokens in enumerate(prompts)]
    batch = _batch(generate(start, ready, 1, replace(sampling, max_new_tokens=32)))
    now = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs
    return float(masked_mean(kl_k3(batch.behavior_log_probs, now), batch.mask))


@torch.no_grad()
def kl_from_start(start: CausalLM, policy: CausalLM, drawn: Sequence[Trajectory]) -> dict[str, float]:
    """Return what the policy's own completions are to the start: their perplexity under it, exp(−mean log π_start), and
    KL(π ‖ π_start) a token in nats, of the whole distribution at each place."""
    start, policy = _uncut(start, policy), _uncut(policy, policy)
    batch = _batch(drawn)
    surprisal, kl = 0.0, 0.0
    for rows in micro_batches(batch, MAX_TOKENS):
        part = batch.select(rows)
        asked = (part.actions, part.mask, part.truncated, part.inputs)
        before = start.evaluate(*asked)
        assert before.states is not None
        now = policy.evaluate(*asked, reference=Reference(start, scatter(before.states, part.mask)))
        assert now.kl_exact is not None
        surprisal -= float(before.log_probs[part.mask].double().sum())
        kl += float(now.kl_exact[part.mask].double().sum())
    num_tokens = int(batch.mask.sum())
    return {"perplexity_under_start": math.exp(surprisal / num_tokens), "kl_from_start": kl / num_tokens}


def _batch(trajectories: Sequence[Trajectory]) -> Batch:
    return make_batch([replace(t, rewards=torch.zeros(len(t))) for t in trajectories])


def _uncut(policy: CausalLM, temperature_of: CausalLM) -> CausalLM:
    """Return a policy over all tokens, at another one's temperature."""
    found = copy.copy(policy)
    found.transform = Transform(temperature_of.transform.temperature)
    return found

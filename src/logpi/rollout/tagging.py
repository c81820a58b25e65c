"""Taggings of sentences: all actions of a sentence are drawn at once, from one forward for its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from logpi.policies.encoder import ASKED, Encoder
from logpi.policies.token_log_probs import PLAIN
from logpi.randomness import uniforms
from logpi.rollout.engine import Sampling, TokenPrompt, choose
from logpi.trajectory import Trajectory

TOKENS_AT_ONCE = 2048  # memory, not results


@torch.no_grad()
def tag(
    policy: Encoder,
    prompts: Sequence[TokenPrompt],
    num_generations: int,
    sampling: Sampling,
    *,
    step: int = 0,
    policy_version: int = 0,
) -> list[Trajectory]:
    """Draw `num_generations` taggings of each sentence, in the sentences' order; rewards are left to the tasks.

    The draw for the word at a position is keyed by (seed, stream, step, uid, sample, position). `sampling.greedy` takes
    each word's likeliest label instead.
    """
    transform = PLAIN if sampling.greedy else policy.transform
    trajectories = []
    for group, (prompt, logits) in enumerate(_logits(policy, prompts)):
        samples = prompt.first_sample + np.arange(num_generations)
        positions = np.arange(len(logits))
        numbers = uniforms(sampling.seed, sampling.stream, step, prompt.uid, samples[:, None], positions).ravel()
        chosen = choose(logits.repeat(num_generations, 1), transform, None if sampling.greedy else numbers)
        for sample, *parts in zip(samples.tolist(), *(part.split(len(logits)) for part in chosen), strict=True):
            actions, log_probs, entropies = parts
            trajectories.append(
                Trajectory(
                    prompt_uid=prompt.uid,
                    sample=sample,
                    group=group,
                    policy_version=policy_version,
                    actions=actions,
                    behavior_log_probs=log_probs,
                    entropies=entropies,
                    inputs=prompt.tokens,
                    terminated=True,
                    truncated=False,
                    failure=None if bool(torch.isfinite(log_probs).all()) else "logits not finite",
                )
            )
    return trajectories


def _logits(policy: Encoder, prompts: Sequence[TokenPrompt]) -> Iterator[tuple[TokenPrompt, Tensor]]:
    """Yield each sentence with its logits [words, labels]; few sentences at a time run side by side."""
    start = 0
    while start < len(prompts):
        num_tokens, stop = 0, start
        while stop < len(prompts) and (stop == start or num_tokens + len(prompts[stop].tokens) <= TOKENS_AT_ONCE):
            num_tokens += len(prompts[stop].tokens)
            stop += 1
        part = prompts[start:stop]
        states = policy.states([prompt.tokens for prompt in part])
        counts = [int(prompt.tokens[:, ASKED].sum()) for prompt in part]
        for prompt, of_sentence in zip(part, states.split(counts), strict=True):
            yield prompt, policy.logits(of_sentence)
        start = stop

"""Batched generation from a causal-LM policy, token in, token out.

Each prompt is prefilled once for its whole group, finished completions leave the batch, each token comes with the
log-prob and entropy of the distribution that it was drawn from. Draws are keyed by (step, prompt, sample, position) and
a row's bits don't depend on the others, so how completions are batched changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from logpi.device import products_in
from logpi.policies.attention import KEY_MULTIPLE, round_up
from logpi.policies.causal_lm import CausalLM
from logpi.policies.own_forward import OwnForward
from logpi.policies.token_log_probs import PLAIN, ROW_MULTIPLE, SLICE_ROWS, Transform, softmax
from logpi.randomness import Stream, uniforms
from logpi.rollout.kv_cache import SlotCache
from logpi.rollout.sampling import draw
from logpi.trajectory import Trajectory


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt ready for the engine: its tokens, and the uid that keys its draws."""

    uid: int
    tokens: Tensor  # [prompt_time]
    first_sample: int = 0  # where its completions are counted from
    first_position: int = 0  # where their tokens are counted from: what was drawn for them in earlier turns


@dataclass(frozen=True)
class Sampling:
    """How to draw. What changes the distribution belongs to the policy; `greedy` takes the likeliest token instead."""

    max_new_tokens: int
    seed: int = 0
    stream: Stream = Stream.ROLLOUT
    greedy: bool = False
    max_rows: int = 128  # completions that run side by side: memory, not results
    max_keys: int = 16384  # rows × positions of the cache: memory, not results


@torch.no_grad()
def generate(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    num_generations: int,
    sampling: Sampling,
    *,
    step: int = 0,
    policy_version: int = 0,
) -> list[Trajectory]:
    """Sample `num_generations` completions of each prompt, in the prompts' order; rewards are left to the tasks."""
    trajectories: list[Trajectory] = []
    if not prompts:
        return trajectories
    capacity = round_up(max(len(p.tokens) for p in prompts) + sampling.max_new_tokens, KEY_MULTIPLE)
    num_rows = min(sampling.max_rows, max(ROW_MULTIPLE, sampling.max_keys // capacity))
    run = _run_whole if isinstance(policy, OwnForward) else _run
    for part, num_samples in _parts(prompts, num_generations, num_rows):
        for record in run(policy, [prompt for _, prompt in part], num_samples, sampling, step):
            group, prompt = part[record.row // num_samples]
            trajectories.append(
                Trajectory(
                    prompt_uid=prompt.uid,
                    sample=prompt.first_sample + record.row % num_samples,
                    group=group,
                    policy_version=policy_version,
                    actions=torch.tensor(record.tokens),
                    behavior_log_probs=torch.stack(record.log_probs),
                    entropies=torch.stack(record.entropies),
                    inputs=prompt.tokens,
                    terminated=record.ended,
                    truncated=not record.ended,
                    failure=record.failure,
                )
            )
    return trajectories


def _parts(
    prompts: Sequence[TokenPrompt], num_generations: int, num_rows: int
) -> Iterator[tuple[list[tuple[int, TokenPrompt]], int]]:
    """Yield what runs side by side: prompts, each with its group, and how many completions of each; a group of more
    than `num_rows` comes in several parts."""
    groups = list(enumerate(prompts))
    if num_generations <= num_rows:
        at_once = num_rows // num_generations
        for start in range(0, len(groups), at_once):
            yield groups[start : start + at_once], num_generations
        return
    for group, prompt in groups:
        for first in range(0, num_generations, num_rows):
            part = replace(prompt, first_sample=prompt.first_sample + first)
            yield [(group, part)], min(num_rows, num_generations - first)


class _Completion:
    """A completion as it grows."""

    def __init__(self, row: int, prompt_length: int):
        self.row, self.prompt_length = row, prompt_length
        self.tokens: list[int] = []
        self.log_probs: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.ended = False
        self.failure: str | None = None


def _run(
    policy: CausalLM, prompts: Sequence[TokenPrompt], num_generations: int, sampling: Sampling, step: int
) -> list[_Completion]:
    """Run one batch of groups to its end; return its completions in row order."""
    prompt_of_row = torch.arange(len(prompts)).repeat_interleave(num_generations)
    completions = [_Completion(row, len(prompts[p].tokens)) for row, p in enumerate(prompt_of_row.tolist())]
    randoms = _uniforms(prompts, num_generations, sampling, step)
    last_hidden, prompt_cache = policy.prompt_pass(policy.sampler, [p.tokens for p in prompts])
    transform = _transform(policy, sampling)
    logits = policy.next_token_logits(last_hidden)[prompt_of_row]
    running = completions
    num_slots = round_up(len(completions), ROW_MULTIPLE)
    cache: SlotCache | None = None
    for position in range(sampling.max_new_tokens):
        numbers = None if sampling.greedy else randoms[[c.row for c in running], position]
        _record(running, *choose(logits, transform, numbers), policy.eos_token_ids)
        survivors = [i for i, c in enumerate(running) if not c.ended and c.failure is None]
        if not survivors or position == sampling.max_new_tokens - 1:
            break
        if cache is None:
            cache = SlotCache(prompt_cache, prompt_of_row, num_slots)
        if len(survivors) < len(running):
            survivors = _fill_holes(survivors)
            cache.keep(torch.tensor(survivors))
            running = [running[i] for i in survivors]
        logits = policy.next_token_logits(_decode(policy, running, cache))
    return completions


def _run_whole(
    policy: CausalLM, prompts: Sequence[TokenPrompt], num_generations: int, sampling: Sampling, step: int
) -> list[_Completion]:
    """The same through transformers' `generate`, one group after the other: no prompt is padded."""
    from transformers import GenerationConfig

    randoms = _uniforms(prompts, num_generations, sampling, step)
    transform = _transform(policy, sampling)
    length = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": policy.eos_token_ids[0]}
    options = GenerationConfig(do_sample=False, eos_token_id=list(policy.eos_token_ids), **length)
    network, found = policy.network, []
    usual, network.generation_config = network.generation_config, GenerationConfig()  # penalties and the like
    try:
        for i, prompt in enumerate(prompts):
            rows = range(i * num_generations, (i + 1) * num_generations)
            group = [_Completion(row, len(prompt.tokens)) for row in rows]
            chooser = _Chooser(group, transform, None if sampling.greedy else randoms[rows], policy.eos_token_ids)
            with products_in(policy.dtype):
                network.generate(
                    prompt.tokens.expand(num_generations, -1), generation_config=options, logits_processor=[chooser]
                )
            found += group
    finally:
        network.generation_config = usual
    return found


class _Chooser:
    """What transformers calls a logits processor: draws as `_run` does, and leaves `generate` the drawn token alone."""

    def __init__(
        self,
        completions: list[_Completion],
        transform: Transform,
        uniforms: np.ndarray | None,
        eos_token_ids: tuple[int, ...],
    ):
        self.completions, self.transform, self.uniforms = completions, transform, uniforms
        self.eos_token_ids = eos_token_ids

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        rows = [i for i, c in enumerate(self.completions) if not c.ended and c.failure is None]
        position = tokens.shape[1] - self.completions[0].prompt_length
        numbers = None if self.uniforms is None else self.uniforms[rows, position]
        chosen, log_probs, entropies = choose(logits[rows], self.transform, numbers)
        _record([self.completions[i] for i in rows], chosen, log_probs, entropies, self.eos_token_ids)
        drawn = torch.full((len(logits),), self.eos_token_ids[0])
        drawn[rows] = chosen
        return torch.full_like(logits, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def _transform(policy: CausalLM, sampling: Sampling) -> Transform:
    """Return what makes of logits the distribution to draw from: nothing is cut where the likeliest token is taken."""
    return PLAIN if sampling.greedy else policy.transform


def _uniforms(prompts: Sequence[TokenPrompt], num_generations: int, sampling: Sampling, step: int) -> np.ndarray:
    """Return the batch's uniform numbers [rows, max_new_tokens], each keyed by its prompt, sample and position."""
    uids = np.repeat([p.uid for p in prompts], num_generations)[:, None]
    first = np.repeat([p.first_sample for p in prompts], num_generations)[:, None]
    samples = first + np.tile(np.arange(num_generations), len(prompts))[:, None]
    start = np.repeat([p.first_position for p in prompts], num_generations)[:, None]
    positions = start + np.arange(sampling.max_new_tokens)
    return uniforms(sampling.seed, sampling.stream, step, uids, samples, positions)


def choose(logits: Tensor, transform: Transform, uniforms: np.ndarray | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's token, drawn by its uniform number (None: the likeliest), its log-prob and the entropy of the
    distribution that it came from."""
    tokens, log_probs, entropies = [], [], []
    for start in range(0, len(logits), SLICE_ROWS):
        few = slice(start, start + SLICE_ROWS)
        found, _ = softmax(logits[few], transform)
        tokens.append(logits[few].argmax(-1) if uniforms is None else draw(found.weights, uniforms[few]))
        log_probs.append(found.log_probs(tokens[-1]))
        entropies.append(found.entropy())
    return torch.cat(tokens), torch.cat(log_probs), torch.cat(entropies)


def _record(
    running: list[_Completion], tokens: Tensor, log_probs: Tensor, entropies: Tensor, eos_token_ids: tuple[int, ...]
) -> None:
    """Append each row's token with its log-prob and entropy."""
    finite = torch.isfinite(log_probs).tolist()
    for i, (completion, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
        completion.tokens.append(token)
        completion.log_probs.append(log_probs[i])
        completion.entropies.append(entropies[i])
        completion.ended = token in eos_token_ids
        if not finite[i]:
            completion.ended, completion.failure = False, f"logits not finite at position {len(completion.tokens) - 1}"


def _fill_holes(survivors: list[int]) -> list[int]:
    """Order survivors so that those already in the first n slots stay where they are."""
    num_rows = len(survivors)
    movers = iter([s for s in survivors if s >= num_rows])
    stays = {s for s in survivors if s < num_rows}
    return [slot if slot in stays else next(movers) for slot in range(num_rows)]


def _decode(policy: CausalLM, running: list[_Completion], cache: SlotCache) -> Tensor:
    """Run one token of every running completion through the network, [running, width]."""
    num_rows = round_up(len(running), ROW_MULTIPLE)
    tokens = torch.zeros((num_rows, 1), dtype=torch.long)
    positions = torch.zeros(num_rows, dtype=torch.long)
    tokens[: len(running), 0] = torch.tensor([c.tokens[-1] for c in running])
    positions[: len(running)] = torch.tensor([c.prompt_length + len(c.tokens) - 1 for c in running])
    cache.begin(positions)
    attend = positions[:, None] >= torch.arange(cache.num_keys)
    hidden = policy.hidden_states(policy.sampler, tokens, positions[:, None], attend[:, None, None], cache)
    return hidden[: len(running), 0]

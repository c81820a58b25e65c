"""Batched generation from a causal-LM policy, token in, token out.

Each prompt is prefilled once for its whole group, finished completions leave the batch, each token comes with the
log-prob and entropy of the distribution that it was drawn from. Draws are keyed by (step, prompt, sample, position) and
a row's bits don't depend on the others, so how completions are batched changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logpi.device import products_in
from logpi.policies.attention import KEY_MULTIPLE, round_up
from logpi.policies.causal_lm import CausalLM
from logpi.policies.memory import bytes_of_position, can_estimate
from logpi.policies.own_forward import OwnForward
from logpi.policies.token_log_probs import PLAIN, ROW_MULTIPLE, Transform, pad_rows, slices, softmax
from logpi.randomness import Stream, uniforms
from logpi.rollout.kv_cache import Key, Prefix, PrefixCache, SlotCache
from logpi.rollout.sampling import draw
from logpi.trajectory import Trajectory, pad

MAX_KEYS, CACHE_BYTES = 16384, 2**29  # what the cache holds at once: so many positions, more where they fit these bytes


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
    max_keys: int | None = None  # rows × positions of the cache: memory, not results; None: by the network's size


@torch.no_grad()
def generate(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    num_generations: int,
    sampling: Sampling,
    *,
    step: int = 0,
    policy_version: int = 0,
    kept: PrefixCache | None = None,
) -> list[Trajectory]:
    """Sample `num_generations` completions of each prompt, in the prompts' order; rewards are left to the tasks.

    `kept` is for several turns: prompts go on from what it holds of them, and leave there what was run for the next
    turn. It saves time and changes no result.
    """
    trajectories: list[list[Trajectory]] = [[] for _ in prompts]
    max_keys = _max_keys(policy) if sampling.max_keys is None else sampling.max_keys

    def num_rows(prompt: TokenPrompt) -> int:
        capacity = round_up(len(prompt.tokens) + sampling.max_new_tokens, KEY_MULTIPLE)
        return min(sampling.max_rows, max(ROW_MULTIPLE, max_keys // capacity))

    run = _run_whole if isinstance(policy, OwnForward) else partial(_run, kept=kept)
    if kept is not None:
        kept.only(key for prompt in prompts for key in _keys(prompt, num_generations))
    for part, num_samples in _parts(prompts, num_generations, num_rows):
        found = run(policy, [prompt for _, prompt in part], num_samples, sampling, step)
        rows = (row for completions in found for row in completions.rows())
        for i, row in enumerate(rows):
            group, prompt = part[i // num_samples]
            trajectories[group].append(
                Trajectory(
                    prompt_uid=prompt.uid,
                    sample=prompt.first_sample + i % num_samples,
                    group=group,
                    policy_version=policy_version,
                    inputs=prompt.tokens,
                    **row,
                )
            )
    return [trajectory for completions in trajectories for trajectory in completions]


def _max_keys(policy: CausalLM) -> int:
    """Return how many positions the cache may have: more of a small network, whose steps cost the same for few rows."""
    config = policy.network.config.get_text_config()
    return max(MAX_KEYS, CACHE_BYTES // bytes_of_position(config, policy.dtype)) if can_estimate(config) else MAX_KEYS


def _parts(
    prompts: Sequence[TokenPrompt], num_generations: int, num_rows: Callable[[TokenPrompt], int]
) -> Iterator[tuple[list[tuple[int, TokenPrompt]], int]]:
    """Yield what runs side by side: prompts, each with its group, and how many completions of each. The longest come
    first, with others that are nearly as long: little of the cache is padding. `num_rows`: how many completions of such
    a prompt fit; a group of more comes in several parts."""
    groups = sorted(enumerate(prompts), key=lambda both: -len(both[1].tokens))
    while groups:
        rows = num_rows(groups[0][1])
        at_once = max(1, rows // num_generations)
        if num_generations <= rows:
            yield groups[:at_once], num_generations
        else:
            group, prompt = groups[0]
            for first in range(0, num_generations, rows):
                part = replace(prompt, first_sample=prompt.first_sample + first)
                yield [(group, part)], min(rows, num_generations - first)
        groups = groups[at_once:]


class _Completions:
    """Completions as they grow, a row each. Those that run, in the order of their slots, have equally many tokens."""

    def __init__(self, prompt_lengths: Tensor, policy: CausalLM, sampling: Sampling):
        num_rows, wide = len(prompt_lengths), torch.promote_types(policy.dtype, torch.float32)
        self.prompt_lengths, self.eos_token_ids = prompt_lengths, torch.tensor(policy.eos_token_ids)
        self.running, self.num_tokens = torch.arange(num_rows), 0
        self.tokens = torch.zeros((num_rows, sampling.max_new_tokens), dtype=torch.long)
        self.log_probs, self.entropies = (torch.zeros(self.tokens.shape, dtype=wide) for _ in range(2))
        self.lengths = torch.zeros(num_rows, dtype=torch.long)
        self.ended, self.failed = (torch.zeros(num_rows, dtype=torch.bool) for _ in range(2))

    def add(self, tokens: Tensor, log_probs: Tensor, entropies: Tensor) -> Tensor:
        """Append a token to each that runs, with its log-prob and entropy; return the slots of those that go on."""
        for kept, new in ((self.tokens, tokens), (self.log_probs, log_probs), (self.entropies, entropies)):
            kept[self.running, self.num_tokens] = new
        self.num_tokens += 1
        self.lengths[self.running] = self.num_tokens
        failed = ~torch.isfinite(log_probs)
        ended = (tokens[:, None] == self.eos_token_ids).any(-1) & ~failed
        self.failed[self.running], self.ended[self.running] = failed, ended
        return (~(ended | failed)).nonzero()[:, 0]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what a trajectory records of each."""
        for row, length in enumerate(self.lengths.tolist()):
            ended, failed = bool(self.ended[row]), bool(self.failed[row])
            yield {
                "actions": self.tokens[row, :length].clone(),
                "behavior_log_probs": self.log_probs[row, :length].clone(),
                "entropies": self.entropies[row, :length].clone(),
                "terminated": ended,
                "truncated": not ended,
                "failure": f"logits not finite at position {length - 1}" if failed else None,
            }

    def just_ended(self) -> tuple[Tensor, list[int]]:
        """Return the slots of those that ended with the last token, and their rows."""
        slots = self.ended[self.running].nonzero()[:, 0]
        return slots, self.running[slots].tolist()

    def newest(self) -> tuple[Tensor, Tensor]:
        """Return the last token of each that runs, and its position."""
        return self.tokens[self.running, self.num_tokens - 1], self.prompt_lengths[self.running] + self.num_tokens - 1


def _run(
    policy: CausalLM,
    prompts: Sequence[TokenPrompt],
    num_generations: int,
    sampling: Sampling,
    step: int,
    kept: PrefixCache | None,
) -> list[_Completions]:
    """Run one batch of groups to its end; return its completions, all in one."""
    prompt_of_row = torch.arange(len(prompts)).repeat_interleave(num_generations)
    completions = _Completions(torch.tensor([len(p.tokens) for p in prompts])[prompt_of_row], policy, sampling)
    randoms = _uniforms(prompts, num_generations, sampling, step)
    transform = _transform(policy, sampling)
    keys = [key for prompt in prompts for key in _keys(prompt, num_generations)]
    prompt_tokens = [prompts[i].tokens for i in prompt_of_row.tolist()]
    prefixes = None if kept is None else kept.take(keys, prompt_tokens)
    if prefixes is None:
        last_hidden, prompt_cache = policy.prompt_pass([p.tokens for p in prompts])
        last_hidden = last_hidden[prompt_of_row]
        cache = SlotCache(prompt_cache, prompt_of_row, round_up(len(prompt_of_row), ROW_MULTIPLE))
    else:
        last_hidden, cache = _go_on(policy, prompt_tokens, prefixes)
    logits = policy.next_token_logits(last_hidden)
    for position in range(sampling.max_new_tokens):
        numbers = None if sampling.greedy else randoms[completions.running.numpy(), position]
        survivors = completions.add(*choose(logits, transform, numbers))
        if kept is not None:
            slots, rows = completions.just_ended()
            run = [torch.cat([prompt_tokens[row], completions.tokens[row, :position]]) for row in rows]
            kept.add([keys[row] for row in rows], cache.prefixes(slots, run))
        if not len(survivors) or position == sampling.max_new_tokens - 1:
            break
        if len(survivors) < len(completions.running):
            survivors = _fill_holes(survivors)
            cache.keep(survivors)
            completions.running = completions.running[survivors]
        tokens, positions = completions.newest()
        logits = policy.next_token_logits(_forward(policy, tokens[:, None], positions[:, None], cache)[:, 0])
    return [completions]


def _keys(prompt: TokenPrompt, num_generations: int) -> list[Key]:
    """Return what tells the prompt's completions from all others."""
    return [(prompt.uid, prompt.first_sample + i) for i in range(num_generations)]


def _run_whole(
    policy: CausalLM, prompts: Sequence[TokenPrompt], num_generations: int, sampling: Sampling, step: int
) -> list[_Completions]:
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
            group = _Completions(torch.full((num_generations,), len(prompt.tokens)), policy, sampling)
            chooser = _Chooser(group, transform, None if sampling.greedy else randoms[rows])
            with products_in(policy.dtype):
                network.generate(
                    prompt.tokens.expand(num_generations, -1), generation_config=options, logits_processor=[chooser]
                )
            found.append(group)
    finally:
        network.generation_config = usual
    return found


class _Chooser:
    """What transformers calls a logits processor: draws as `_run` does, and leaves `generate` the drawn token alone."""

    def __init__(self, completions: _Completions, transform: Transform, uniforms: np.ndarray | None):
        self.completions, self.transform, self.uniforms = completions, transform, uniforms

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        completions, rows = self.completions, self.completions.running
        numbers = None if self.uniforms is None else self.uniforms[rows.numpy(), completions.num_tokens]
        drawn = torch.full((len(logits),), int(completions.eos_token_ids[0]))
        chosen = choose(logits[rows], self.transform, numbers)
        completions.running = rows[completions.add(*chosen)]
        drawn[rows] = chosen[0]
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
    for few, _ in slices(0, len(logits), logits.shape[1]):
        found, _ = softmax(logits[few], transform)
        tokens.append(logits[few].argmax(-1) if uniforms is None else draw(found.weights, uniforms[few]))
        log_probs.append(found.log_probs(tokens[-1]))
        entropies.append(found.entropy())
    return torch.cat(tokens), torch.cat(log_probs), torch.cat(entropies)


def _fill_holes(survivors: Tensor) -> Tensor:
    """Order the slots that go on so that those already among the first n stay where they are."""
    places = torch.arange(len(survivors))
    is_hole = ~torch.isin(places, survivors)
    places[is_hole] = survivors[survivors >= len(survivors)]
    return places


def _go_on(policy: CausalLM, prompts: Sequence[Tensor], prefixes: Sequence[Prefix]) -> tuple[Tensor, SlotCache]:
    """Run what prompts have behind their prefixes: the state after each one's last token [prompts, width], a cache."""
    starts = torch.tensor([len(prefix.tokens) for prefix in prefixes])
    rests = [prompt[start:] for prompt, start in zip(prompts, starts.tolist(), strict=True)]
    lengths = torch.tensor([len(rest) for rest in rests])
    time = round_up(int(lengths.max()), ROW_MULTIPLE)
    cache = SlotCache.of(prefixes, round_up(len(prompts), ROW_MULTIPLE), int(starts.max()) + time)
    hidden = _forward(policy, pad(rests, time), starts[:, None] + torch.arange(time), cache)
    return hidden[torch.arange(len(prompts)), lengths - 1], cache


def _forward(policy: CausalLM, tokens: Tensor, positions: Tensor, cache: SlotCache) -> Tensor:
    """Run tokens [rows, time] that stand at these positions, a slot of the cache each, -> [rows, time, width]."""
    num_rows = len(tokens)
    tokens, positions = pad_rows(tokens), pad_rows(positions)
    cache.begin(positions)
    attend = positions[:, None, :, None] >= torch.arange(cache.num_keys)
    positions = positions.clamp(max=policy.context_length - 1)  # of padding behind a prompt only
    hidden = policy.hidden_states(policy.sampler, tokens, positions, attend, cache)
    return hidden[:num_rows]

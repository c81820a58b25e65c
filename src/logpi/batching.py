"""Which trajectories go together: into one optimiser step (minibatch), and into one forward (micro-batch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from logpi.randomness import Stream, permutation
from logpi.trajectory import OWN, Batch, num_shared


def minibatches(
    batch: Batch,
    token_weights: Callable[[Tensor], Tensor],
    *,
    updates: int = 1,
    num_minibatches: int = 1,
    seed: int = 0,
    step: int = 0,
) -> Iterator[Batch]:
    """Yield the batch of each optimiser step, with `token_weights` from all its trajectories, times their prompts'.

    Every update passes once over all groups in a keyed order; whole groups stay together, or single trajectories where
    the rollout is one group. With num_minibatches=1 the order is the rollout's.
    """
    units = batch.group if len(batch.group.unique()) > 1 else torch.arange(len(batch))
    names = units.unique()
    for update in range(updates):
        if num_minibatches == 1:
            chunks = [torch.arange(len(batch))]
        else:
            order = torch.from_numpy(permutation(seed, Stream.MINIBATCH, len(names), step, update))
            chunks = [torch.isin(units, names[part]).nonzero()[:, 0] for part in order.chunk(num_minibatches)]
        for rows in chunks:
            part = batch.select(rows)
            weights = token_weights(part.mask)
            yield replace(part, token_weights=weights * part.weights[:, None].to(weights.dtype))


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Tensor]:
    """Yield row indices for one forward each: longest first, prompts counted once a group, at most `max_tokens` tokens
    (a single row may have more). A group that fits into one forward is not split: its prompt would run twice. A row is
    as long as its actions and what it was told in between."""
    groups = batch.group.tolist()
    distinct = {id(inputs): inputs for inputs in batch.inputs}  # a group has one prompt
    counted = {name: _others(inputs) for name, inputs in distinct.items()}
    shared, told = zip(*(counted[id(inputs)] for inputs in batch.inputs), strict=True)
    lengths = [actions + others for actions, others in zip(batch.lengths.tolist(), told, strict=True)]
    longest_of_group: dict[int, int] = {}
    whole: dict[int, int] = {}  # tokens of a group and its prompt
    for group, length, prompt in zip(groups, lengths, shared, strict=True):
        longest_of_group[group] = max(length, longest_of_group.get(group, 0))
        whole[group] = whole.get(group, prompt) + length
    order = sorted(range(len(batch)), key=lambda i: (-longest_of_group[groups[i]], groups[i], i))
    rows: list[int] = []
    prompts: set[int] = set()
    num_tokens = 0
    for row in order:
        group, prompt = groups[row], shared[row]
        is_new = group not in prompts
        more = lengths[row] + (prompt if is_new else 0)
        needed = whole[group] if is_new and whole[group] <= max_tokens else more
        if rows and num_tokens + needed > max_tokens:
            yield torch.tensor(rows)
            rows, prompts, num_tokens, more = [], set(), 0, lengths[row] + prompt
        rows.append(row)
        prompts.add(group)
        num_tokens += more
    if rows:
        yield torch.tensor(rows)


def _others(inputs: Tensor) -> tuple[int, int]:
    """Return how many tokens of a trajectory are its prompt's, and how many it was told since; observations aren't."""
    start = num_shared(inputs)
    return start, 0 if inputs.ndim > 1 else int((inputs[start:] != OWN).sum())

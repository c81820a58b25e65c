"""Prompts and completions as one row of real tokens, without padding: what a language model's learner runs.

A prompt comes once, however many completions go on from it. Every operation but attention sees each token once; for
attention tokens are laid out in blocks, in which key j of a sequence is its position j, as in sampling: the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from logpi.device import product_dtype
from logpi.policies.attention import KEY_MULTIPLE, probabilities, round_up, weighted
from logpi.policies.token_log_probs import ROW_MULTIPLE

BLOCK_SCORES = 2**16  # of a head, in one block: they stay in the processor's cache from one pass to the next


class Span(NamedTuple):
    """Tokens that lie one after the other, and the prompt that they go on from: none, where they are one."""

    start: int
    length: int
    prompt_start: int = 0
    prompt_length: int = 0


@dataclass(frozen=True)
class Block:
    """Spans whose attention is computed together; `heads` makes rows of places."""

    spans: list[Span]
    queries: Tensor  # [spans, time], places of the tokens that ask; where there is none, the last place of all
    keys: Tensor  # [spans, keys], places of what they may ask: key j is position j
    masked: Tensor  # [spans, 1, time, keys], what they may not

    @classmethod
    def of(cls, spans: list[Span], nowhere: int, causal: bool = True) -> Block:
        """Lay out spans; `nowhere` is a place that no token has. `causal`: no token may ask a later one."""
        start, length, prompt_start, offset = (torch.tensor(numbers)[:, None] for numbers in zip(*spans, strict=True))
        time = torch.arange(int(length.max()))
        position = torch.arange(round_up(int((length + offset).max()), KEY_MULTIPLE))
        keys = torch.where(position < offset, prompt_start + position, start + position - offset)
        last = offset + (time if causal else (length - 1).expand(-1, len(time)))  # that may be asked
        return cls(
            spans,
            torch.where(time < length, start + time, nowhere),
            torch.where(position < length + offset, keys, nowhere),
            (last[:, :, None] < position)[:, None],
        )


def rows_of_heads(places: Tensor, num_heads: int, num_groups: int) -> Tensor:
    """Return the rows of [places · heads, width] that the places [spans, n] are, the heads of a group one after the
    other: [spans, groups, heads of one · n]."""
    head = torch.arange(num_heads).view(num_groups, -1, 1)
    return (places[:, None, None, :] * num_heads + head).flatten(2)


@dataclass(frozen=True)
class Packing:
    """Where each token lies: prompts first, then each row but its last token, then some padding."""

    positions: Tensor  # [places], a multiple of 8 of them, the last one no token's; of each token in its sequence
    states: Tensor  # [actions], the place whose state each action was chosen in, rows one after the other
    blocks: list[Block]
    known: dict[tuple[int, int], tuple[list[tuple[Tensor, Tensor]], Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        prompts: Sequence[int],
        prompt_of_row: Sequence[int],
        actions: Sequence[Tensor],
        lengths: Sequence[int],
    ) -> Packing:
        """Pack prompts of these lengths, and rows of these lengths that go on from them; `actions` are where in a row
        its actions stand. Nothing reads a row's last token."""
        spans, place = [], 0
        for length in prompts:
            spans.append(Span(place, length))
            place += length
        for prompt, length in zip(prompt_of_row, lengths, strict=True):
            spans.append(Span(place, length - 1, spans[prompt].start, prompts[prompt]))
            place += length - 1
        positions = torch.zeros(round_up(place + 1, ROW_MULTIPLE), dtype=torch.long)
        states: list[int] = []
        for i, span in enumerate(spans):
            inside = range(span.start, span.start + span.length)
            positions[span.start : inside.stop] = torch.arange(span.length) + span.prompt_length
            if i >= len(prompts):
                before = [span.prompt_start + span.prompt_length - 1, *inside]
                states += [before[place] for place in actions[i - len(prompts)].tolist()]
        padding = Span(place, len(positions) - place)  # no place goes without a query of its own: its gradient is 0
        parts = (
            [padding, *(piece for span in spans[: len(prompts)] for piece in _pieces(span))],
            [span for span in spans[len(prompts) :] if span.length],
        )
        blocks = [Block.of(few, len(positions) - 1) for part in parts for few in _alike(part)]
        return cls(positions, torch.tensor(states), blocks)

    @classmethod
    def of_sentences(cls, lengths: Sequence[int]) -> Packing:
        """Pack sentences of these lengths; every token may ask all of its sentence, and has a state of its own. The
        padding behind them is one more."""
        starts = [0, *accumulate(lengths)]
        positions = torch.zeros(round_up(starts[-1] + 1, ROW_MULTIPLE), dtype=torch.long)
        positions[: starts[-1]] = torch.cat([torch.arange(length) for length in lengths])
        spans = [Span(start, length) for start, length in zip(starts, [*lengths, len(positions) - starts[-1]])]
        blocks = [Block.of(few, len(positions) - 1, causal=False) for few in _alike(spans)]
        return cls(positions, torch.arange(starts[-1]), blocks)

    def rows(self, num_heads: int, num_key_heads: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return (rows of queries and of keys in each block, flat; where in the blocks' queries, one after the other,
        each row [places · heads] is)."""
        if (num_heads, num_key_heads) not in self.known:
            found = [
                (
                    rows_of_heads(b.queries, num_heads, num_key_heads),
                    rows_of_heads(b.keys, num_key_heads, num_key_heads),
                )
                for b in self.blocks
            ]
            asked = torch.cat([queries.flatten() for queries, _ in found])
            where = torch.zeros(len(self.positions) * num_heads, dtype=torch.long)
            where[asked] = torch.arange(len(asked))
            self.known[num_heads, num_key_heads] = found, where
        return self.known[num_heads, num_key_heads]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """softmax(QKᵀ·scaling + mask)V within each sequence: query [places, heads, width], key and value [places, key
        heads, width] -> [places, heads, width], in the dtype of products here."""
        dtype = product_dtype(query.dtype)
        return _Attention.apply(query.to(dtype) * scaling, key.to(dtype), value.to(dtype), self)


def _pieces(prompt: Span) -> Iterator[Span]:
    """Yield a prompt in pieces that go on from those before: few scores at once, and none of tokens to come."""
    size = max(ROW_MULTIPLE, BLOCK_SCORES // prompt.length // ROW_MULTIPLE * ROW_MULTIPLE)
    for first in range(0, prompt.length, size):
        yield Span(prompt.start + first, min(size, prompt.length - first), prompt.start, first)


def _alike(spans: list[Span]) -> Iterator[list[Span]]:
    """Yield spans in blocks, the longest first, so that little of a block is padding."""
    few: list[Span] = []
    scores = 0
    for span in sorted(spans, key=lambda s: (-s.length - s.prompt_length, s)):
        if few and (len(few) + 1) * scores > BLOCK_SCORES:
            yield few
            few = []
        few.append(span)
        scores = max(s.length for s in few) * max(s.length + s.prompt_length for s in few)
    if few:
        yield few


class _Attention(torch.autograd.Function):
    """softmax(QKᵀ + mask)V, recomputing the probabilities P in backward:

    ∂V = Pᵀ∂O, ∂S = P·(∂P − Σ_keys ∂P·P) with ∂P = ∂O Vᵀ, ∂Q = ∂S K, ∂K = ∂Sᵀ Q.
    """

    @staticmethod
    def forward(ctx, query, key, value, packing):
        ctx.save_for_backward(query, key, value)
        ctx.packing = packing
        rows, where = packing.rows(query.shape[1], key.shape[1])
        found = []
        for block, (asking, asked) in zip(packing.blocks, rows, strict=True):
            own = probabilities(_take(query, asking), _take(key, asked), block.masked)
            found.append(weighted(own.to(value.dtype), _take(value, asked)).flatten(0, -2))
        return torch.cat(found)[where].view(query.shape)

    @staticmethod
    def backward(ctx, *slopes):
        query, key, value = ctx.saved_tensors
        rows, where = ctx.packing.rows(query.shape[1], key.shape[1])
        wide = torch.promote_types(key.dtype, torch.float32)
        of_key, of_value = key.new_zeros(key.shape, dtype=wide), value.new_zeros(value.shape, dtype=wide)
        of_query = []
        for block, (asking, asked) in zip(ctx.packing.blocks, rows, strict=True):
            queries, keys, values = _take(query, asking), _take(key, asked), _take(value, asked)
            slope = _take(slopes[0].to(query.dtype), asking)
            own = probabilities(queries, keys, block.masked)
            of_own = (slope @ values.transpose(2, 3)).to(own.dtype)
            of_scores = torch.ops.aten._softmax_backward_data(of_own, own, -1, own.dtype).to(query.dtype)
            of_query.append((of_scores @ keys).flatten(0, -2))
            _add_by_place(of_key, of_scores.transpose(2, 3) @ queries, block)
            _add_by_place(of_value, own.to(value.dtype).transpose(2, 3) @ slope, block)
        return torch.cat(of_query)[where].view(query.shape), of_key.to(key.dtype), of_value.to(value.dtype), None


def _take(heads: Tensor, rows: Tensor) -> Tensor:
    """[places, heads, width], rows [spans, groups, n] -> [spans, groups, n, width]."""
    return heads.reshape(-1, heads.shape[-1])[rows.flatten()].view(*rows.shape, -1)


def _add_by_place(total: Tensor, found: Tensor, block: Block) -> None:
    """Add what was found for each key [spans, key heads, keys, width] to the total of its place [places, key heads,
    width]: a prompt's keys are asked by all that goes on from it."""
    for span, of_span in zip(block.spans, found.transpose(1, 2), strict=True):
        offset, end = span.prompt_length, span.prompt_length + span.length
        total[span.prompt_start : span.prompt_start + offset] += of_span[:offset]
        total[span.start : span.start + span.length] += of_span[offset:end]

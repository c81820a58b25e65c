"""The sampler's keys and values: a slot for each running completion, slots kept dense as completions finish; and what a
turn of a conversation leaves for the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from logpi.policies.attention import KEY_MULTIPLE, KeyValues, round_up


@dataclass(frozen=True)
class Prefix:
    """Tokens that have been run, and what is kept of them: layer by layer, [heads, time, width]."""

    tokens: Tensor  # [time]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(kept.nbytes for kept in (*self.keys.values(), *self.values.values()))

    def begins(self, tokens: Tensor) -> bool:
        """Return whether tokens begin with it, and go on."""
        return len(self.tokens) < len(tokens) and torch.equal(self.tokens, tokens[: len(self.tokens)])


class SlotCache(KeyValues):
    """Keys and values of every layer, [slots, heads, capacity, width]; key j of a slot is its position j.

    The running completions are always slots 0 … n−1, so a decoding step reads views and copies nothing. `keep` moves
    the survivors down when completions finish.
    """

    def __init__(self, prompt: KeyValues, prompt_of_slot: Tensor, num_slots: int):
        super().__init__()
        for layer, prompt_keys in prompt.keys.items():
            for store, source in ((self.keys, prompt_keys), (self.values, prompt.values[layer])):
                slots = source.new_zeros((num_slots, *source.shape[1:]))
                slots[: len(prompt_of_slot)] = source[prompt_of_slot]
                store[layer] = slots

    @classmethod
    def of(cls, prefixes: Sequence[Prefix], num_slots: int, capacity: int) -> SlotCache:
        """Begin with a prefix in each slot, and room for so many keys."""
        cache = cls(KeyValues(), torch.empty(0), num_slots)
        for store, kept in ((cache.keys, [p.keys for p in prefixes]), (cache.values, [p.values for p in prefixes])):
            for layer, first in kept[0].items():
                heads, _, width = first.shape
                store[layer] = first.new_zeros((num_slots, heads, round_up(capacity, KEY_MULTIPLE), width))
                for slot, of_slot in enumerate(kept):
                    store[layer][slot, :, : of_slot[layer].shape[1]] = of_slot[layer]
        return cache

    def begin(self, positions: Tensor) -> None:
        """Announce the next step: slot i writes its tokens at positions[i], [slots, time]. Room for keys grows by 32:
        what is there is read in one piece, without a copy."""
        self.num_rows = len(positions)
        missing = round_up(int(positions.max()) + 1, KEY_MULTIPLE) - self.num_keys
        if missing > 0:
            for store in (self.keys, self.values):
                for layer, kept in store.items():
                    store[layer] = F.pad(kept[: len(positions)], (0, 0, 0, missing))
        _, num_heads, capacity, _ = self.keys[0].shape
        slot_and_head = torch.arange(self.num_rows * num_heads).view(-1, num_heads, 1)
        self.places = (slot_and_head * capacity + positions[:, None]).flatten()  # among all keys of a layer

    @property
    def num_keys(self) -> int:
        """Keys of a slot that there is room for."""
        return self.keys[0].shape[2]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write each slot's tokens [slots, heads, time, width]; return views of the first n slots."""
        for store, new in ((self.keys, key), (self.values, value)):
            kept, width = store[layer_idx], new.shape[3]
            kept.view(-1, width).index_copy_(0, self.places, new.reshape(-1, width).to(kept.dtype))
        return self.keys[layer_idx][: self.num_rows], self.values[layer_idx][: self.num_rows]

    def keep(self, survivors: Tensor) -> None:
        """Make slot `survivors[i]` slot i; the ones already in place stay where they are."""
        moved = survivors != torch.arange(len(survivors))
        if not bool(moved.any()):
            return
        source, target = survivors[moved], torch.arange(len(survivors))[moved]
        for store in (*self.keys.values(), *self.values.values()):
            store[target] = store[source]

    def prefixes(self, slots: Tensor, tokens: Sequence[Tensor]) -> list[Prefix]:
        """Return copies of what slots hold of their first tokens, those given."""
        if not tokens:
            return []
        longest = max(map(len, tokens))
        taken = [
            {layer: kept[slots, :, :longest] for layer, kept in store.items()} for store in (self.keys, self.values)
        ]
        return [
            Prefix(of_slot, *({layer: kept[i, :, : len(of_slot)] for layer, kept in part.items()} for part in taken))
            for i, of_slot in enumerate(tokens)
        ]


Key = tuple[int, int]  # a prompt's uid, and the sample


class PrefixCache:
    """What the last turn of conversations has run, for the next one to go on from; as much of it as there is room."""

    def __init__(self, room: int):
        """`room`: bytes of keys and values."""
        self.room = room
        self.known: dict[Key, Prefix] = {}

    def only(self, keys: Iterable[Key]) -> None:
        """Forget all but these."""
        self.known = {key: self.known[key] for key in keys if key in self.known}

    def take(self, keys: Sequence[Key], prompts: Sequence[Tensor]) -> list[Prefix] | None:
        """Return, and forget, what is known of each of these prompts; None unless all go on from it."""
        found = [self.known.pop(key, None) for key in keys]
        known = [p for p, prompt in zip(found, prompts, strict=True) if p is not None and p.begins(prompt)]
        return known if len(known) == len(prompts) else None

    def add(self, keys: Sequence[Key], prefixes: Sequence[Prefix]) -> None:
        """Keep prefixes while there is room."""
        held = sum(prefix.nbytes for prefix in self.known.values())
        for key, prefix in zip(keys, prefixes, strict=True):
            held += prefix.nbytes
            if held <= self.room:
                self.known[key] = prefix

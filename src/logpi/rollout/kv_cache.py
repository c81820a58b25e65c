"""The sampler's key/value cache: one slot a running completion, slots kept dense as completions finish."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from logpi.policies.attention import KEY_MULTIPLE, KeyValues, round_up


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

    def begin(self, positions: Tensor) -> None:
        """Announce the next step: slot i writes its token at positions[i]. Room for keys grows by 32: what is there is
        read in one piece, without a copy."""
        self.num_rows = len(positions)
        missing = round_up(int(positions.max()) + 1, KEY_MULTIPLE) - self.num_keys
        if missing > 0:
            for store in (self.keys, self.values):
                for layer, kept in store.items():
                    store[layer] = F.pad(kept[: len(positions)], (0, 0, 0, missing))
        _, num_heads, capacity, _ = self.keys[0].shape
        slot_and_head = torch.arange(self.num_rows * num_heads).view(-1, num_heads)
        self.places = (slot_and_head * capacity + positions[:, None]).flatten()  # among all keys of a layer

    @property
    def num_keys(self) -> int:
        """Keys of a slot that there is room for."""
        return self.keys[0].shape[2]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write one token a slot; return views of the first n slots."""
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

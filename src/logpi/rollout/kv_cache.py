"""The sampler's key/value cache: one slot a running completion, slots kept dense as completions finish."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.device import product_dtype
from logpi.policies.attention import KEY_MULTIPLE, KeyValues, round_up


class SlotCache(KeyValues):
    """Keys and values of every layer, [slots, heads, capacity, width]; key j of a slot is its position j.

    The running completions are always slots 0 … n−1, so a decoding step reads views and copies nothing. `place` puts
    prompts into slots, `keep` moves the survivors down when completions finish.
    """

    def __init__(self, prompt: KeyValues, prompt_of_slot: Tensor, num_slots: int, capacity: int):
        super().__init__()
        capacity = round_up(capacity, KEY_MULTIPLE)
        self.positions = torch.zeros(num_slots, dtype=torch.long)  # where the next token of each slot is written
        self.num_keys = capacity  # until the first `begin` says how many are in use: prompts fill any number
        for layer, prompt_keys in prompt.keys.items():
            for store, source in ((self.keys, prompt_keys), (self.values, prompt.values[layer])):
                length = min(source.shape[2], capacity)
                slots = source.new_zeros((num_slots, source.shape[1], capacity, source.shape[3]))
                slots[: len(prompt_of_slot), :, :length] = source[prompt_of_slot][:, :, :length]
                store[layer] = slots

    def begin(self, positions: Tensor) -> None:
        """Announce the next step: slot i writes its token at positions[i]."""
        self.positions = positions
        self.rows = torch.arange(len(positions))
        self.num_keys = round_up(int(positions.max()) + 1, KEY_MULTIPLE)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write one token a slot; return views of the first n slots and the keys up to the longest, in 64s."""
        dtype = product_dtype(key.dtype)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.rows, :, self.positions] = key[:, :, 0].to(dtype)
        values[self.rows, :, self.positions] = value[:, :, 0].to(dtype)
        num_rows = len(self.rows)
        return keys[:num_rows, :, : self.num_keys], values[:num_rows, :, : self.num_keys]

    def keep(self, survivors: Tensor) -> None:
        """Make slot `survivors[i]` slot i; the ones already in place stay where they are."""
        moved = survivors != torch.arange(len(survivors))
        if not bool(moved.any()):
            return
        source, target = survivors[moved], torch.arange(len(survivors))[moved]
        for store in (*self.keys.values(), *self.values.values()):
            store[target, :, : self.num_keys] = store[source, :, : self.num_keys]

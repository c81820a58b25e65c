"""The attention that sampler and learner share, registered with transformers under the name "logpi".

Explicit scores and a masked softmax over a padded key axis. Bits of one row don't depend on batch size, slot, order or
on whether keys came from a cache, because every product has rows in multiples of 8 and keys in multiples of 64, and
key j of a row is always its position j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.device import product_dtype
from logpi.errors import InputError
from logpi.policies.token_log_probs import pad_rows

KEY_MULTIPLE = 64
MASKED = -1e30  # finite, so a row of padding gives numbers instead of NaN; exp(MASKED − max) is exactly 0
NAME = "logpi"


def round_up(length: int, multiple: int) -> int:
    """Return the least multiple that is at least `length`."""
    return -(-length // multiple) * multiple


def invariant_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """softmax(QKᵀ·scaling + mask)V, query heads of a key/value head folded into the rows.

    query [batch, heads, queries, width], key and value [batch, key heads, keys, width] with keys a multiple of 64,
    attention_mask [batch or 1, 1, queries, keys] (True: attend) -> [batch, queries, heads, width].
    """
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise InputError(f"this model's attention uses {name}, which logpi does not compute; pick another model")
    if attention_mask is None:
        raise InputError(f"{type(module).__name__} drops the mask that it is given; logpi can't run this model")
    batch, num_heads, num_queries, width = query.shape
    num_key_heads, num_keys = key.shape[1:3]
    dtype = product_dtype(query.dtype)
    folded = query.to(dtype).reshape(batch, num_key_heads, -1, width)
    scores = _product(folded, key.to(dtype).transpose(2, 3))
    scores = scores.to(torch.promote_types(dtype, torch.float32)) * (width**-0.5 if scaling is None else scaling)
    scores = scores.reshape(batch, num_key_heads, -1, num_queries, num_keys)
    scores = scores.masked_fill(~attention_mask[:, :, None], MASKED)
    probabilities = torch.softmax(scores, -1).to(dtype).view(batch, num_key_heads, -1, num_keys)
    out = _product(probabilities, value.to(dtype))
    return out.reshape(batch, num_heads, num_queries, width).transpose(1, 2), None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b; only fp32 and float64 products need rows in eights to be independent of how many there are."""
    if a.dtype == torch.bfloat16:
        return torch.matmul(a, b)
    return torch.matmul(pad_rows(a, dim=2), b)[:, :, : a.shape[2]]


def register() -> None:
    """Make `attn_implementation="logpi"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, invariant_attention)


class KeyValues:
    """Keys and values of one forward, kept for the next: what transformers calls a cache, reduced to `update`."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list = []  # transformers asks a cache for it; ours keeps its own lists
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always given, never derived from the cache

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keep and return keys and values, padded on the right to a multiple of 64."""
        dtype = product_dtype(key.dtype)
        self.keys[layer_idx] = pad_rows(key.to(dtype), KEY_MULTIPLE, dim=2)
        self.values[layer_idx] = pad_rows(value.to(dtype), KEY_MULTIPLE, dim=2)
        return self.keys[layer_idx], self.values[layer_idx]


class SharedPrompt(KeyValues):
    """Completions over prompts that ran once each: row i sees prompt `prompt_of_row[i]`, then itself."""

    def __init__(self, prompt: KeyValues, prompt_of_row: Tensor, prompt_lengths: Tensor, num_actions: int):
        super().__init__()
        self.prompt, self.prompt_of_row = prompt, prompt_of_row
        padded = prompt.keys[0].shape[2]
        position = torch.arange(round_up(int(prompt_lengths.max()) + num_actions, KEY_MULTIPLE))
        own = position - prompt_lengths[:, None]  # index among the row's own keys; negative: the prompt's
        source = torch.where(own < 0, position, padded + own.clamp(max=num_actions - 1))
        self.source = source[:, None, :, None]  # [batch, 1, keys, 1]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._join(self.prompt.keys[layer_idx], key), self._join(self.prompt.values[layer_idx], value)

    def _join(self, prompt: Tensor, own: Tensor) -> Tensor:
        joined = torch.cat([prompt[self.prompt_of_row], own.to(prompt.dtype)], 2)
        return joined.gather(2, self.source.expand(-1, joined.shape[1], -1, joined.shape[3]))

"""The attention that sampler and learner share, registered with transformers under the name "logpi".

Explicit scores and a masked softmax over a padded key axis. Bits of one row don't depend on batch size, slot, order or
on whether keys came from a cache, because every product has rows in multiples of 8 and keys in multiples of 32, none
adds over more keys than a library takes at once, and key j of a row is always its position j.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from logpi.device import product_dtype
from logpi.errors import InputError
from logpi.policies.token_log_probs import pad_rows

KEY_MULTIPLE = 32
KEYS_AT_ONCE, KEYS_AT_ONCE_BF16 = 192, 512  # that a product adds over
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
    packing: Any = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """softmax(QKᵀ·scaling + mask)V, query heads of a key/value head folded into the rows.

    query [batch, heads, queries, width], key and value [batch, key heads, keys, width] with keys a multiple of 32,
    attention_mask [batch or 1, 1, queries, keys] (True: attend) -> [batch, queries, heads, width]. With a `Packing`,
    which says who attends to whom, all of them are [1, heads, places, width].
    """
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise InputError(f"this model's attention uses {name}, which logpi does not compute; pick another model")
    if attention_mask is None:
        raise InputError(f"{type(module).__name__} drops the mask that it is given; logpi can't run this model")
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing is not None:
        return packing.attention(*(part[0].transpose(0, 1) for part in (query, key, value)), factor)[None], None
    dtype = product_dtype(query.dtype)
    return attention_of(query.to(dtype) * factor, key.to(dtype), value.to(dtype), ~attention_mask), None


def attention_of(query: Tensor, key: Tensor, value: Tensor, masked: Tensor) -> Tensor:
    """softmax(QKᵀ + mask)V of scaled queries; shapes as in `invariant_attention`, `masked`: where not to look."""
    batch, num_heads, num_queries, width = query.shape
    own = probabilities(query.reshape(batch, key.shape[1], -1, width), key, masked).to(value.dtype)
    return weighted(own, value).reshape(batch, num_heads, num_queries, width).transpose(1, 2)


def probabilities(query: Tensor, key: Tensor, masked: Tensor) -> Tensor:
    """softmax(QKᵀ + mask), at least in float32: query, scaled already, [batch, key heads, rows, width] with a row for
    each head of the key head and each query, key [batch, key heads, keys, width], masked [batch or 1, 1, queries, keys]
    -> [batch, key heads, rows, keys]."""
    scores = product(query, key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32))
    by_head = scores.view(*scores.shape[:2], -1, *masked.shape[2:])
    return torch.softmax(by_head.masked_fill_(masked[:, :, None], MASKED), -1).view(scores.shape)


def weighted(own: Tensor, value: Tensor) -> Tensor:
    """Return own @ value, of probabilities [batch, key heads, rows, keys], added up over few keys at a time.

    Where a product cuts its sum is up to the library and depends on how many keys there are, padding included: MKL
    takes up to 192 at once and halves what is up to 384, oneDNN takes up to 1024. Pieces of our own begin at the same
    keys however many there are, and padding adds 0.
    """
    size = KEYS_AT_ONCE_BF16 if own.dtype == torch.bfloat16 else KEYS_AT_ONCE
    if own.shape[3] <= size:
        return product(own, value)
    pieces = [product(*both) for both in zip(own.split(size, 3), value.split(size, 2), strict=True)]
    total = pieces[0].to(torch.promote_types(own.dtype, torch.float32))
    for piece in pieces[1:]:
        total = total + piece
    return total.to(own.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b; only fp32 and float64 products need rows in eights to be independent of how many there are."""
    if a.dtype == torch.bfloat16:
        return torch.matmul(a, b)
    return torch.matmul(pad_rows(a, dim=2), b)[:, :, : a.shape[2]]


def register() -> None:
    """Make `attn_implementation="logpi"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, invariant_attention)


@contextmanager
def replaced_by(other: str, network: Any) -> Iterator[None]:
    """Let a network that has logpi's attention take another one for a while; one that keeps its own stays as it is."""
    is_ours = network.config._attn_implementation == NAME
    if is_ours:
        network.set_attn_implementation(other)
    try:
        yield
    finally:
        if is_ours:
            network.set_attn_implementation(NAME)


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
        """Keep and return keys and values, padded on the right to a multiple of 32."""
        dtype = product_dtype(key.dtype)
        self.keys[layer_idx] = pad_rows(key.to(dtype), KEY_MULTIPLE, dim=2)
        self.values[layer_idx] = pad_rows(value.to(dtype), KEY_MULTIPLE, dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    @classmethod
    def joined(cls, parts: list[KeyValues]) -> KeyValues:
        """Return the sequences of all parts, which are used up, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for layer in list(parts[0].keys):
            whole.keys[layer] = torch.cat([part.keys.pop(layer) for part in parts])
            whole.values[layer] = torch.cat([part.values.pop(layer) for part in parts])
        return whole


class PackedKeyValues(KeyValues):
    """Those of packed prompts, [places, heads, width] of each layer."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keep keys and values [1, heads, places, width], and return them."""
        dtype = product_dtype(key.dtype)
        self.keys[layer_idx] = key[0].transpose(0, 1).to(dtype)
        self.values[layer_idx] = value[0].transpose(0, 1).to(dtype)
        return key, value

    def lay_out(self, lengths: Tensor, num_keys: int) -> KeyValues:
        """Return them prompt by prompt, [prompts, heads, num_keys, width]; what a prompt of these lengths has not is
        taken from the last place of all, no token's."""
        starts = lengths.cumsum(0) - lengths
        key = torch.arange(num_keys)
        places = torch.where(key < lengths[:, None], starts[:, None] + key, -1)
        cache = KeyValues()
        for store, packed in ((cache.keys, self.keys), (cache.values, self.values)):
            store.update({layer: kept[places].transpose(1, 2) for layer, kept in packed.items()})
        return cache

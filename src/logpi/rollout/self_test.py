"""Whether a row's bits depend on the rows beside it, on this processor, with this build, dtype and model.

The agreement of sampler and learner to the last bit rests on that. It is tried at every
start, on the model's own layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logpi.device import products_in
from logpi.policies.adapters import product_layers
from logpi.policies.attention import KEY_MULTIPLE, invariant_attention, round_up
from logpi.policies.causal_lm import CausalLM
from logpi.policies.products import Product
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import make_batch

SAME_BITS = "log-probs of sampler and learner are the same bits"
MANY, FEW = 256, 8  # rows


@dataclass(frozen=True)
class SelfTest:
    """What was found: the parts whose rows depend on their company, and how far sampled and learned log-probs are."""

    dependent: tuple[str, ...]
    difference: float  # max |Δ| over a few short completions, cache on, ragged, scored together and one by one

    @property
    def is_exact(self) -> bool:
        """Whether sampler and learner agree to the last bit here."""
        return not self.dependent and self.difference == 0.0

    def line(self) -> str:
        """Return the result in one line."""
        if self.is_exact:
            return SAME_BITS
        what = f"; these depend on the batch: {', '.join(self.dependent)}" if self.dependent else ""
        return f"log-probs of sampler and learner differ by up to {self.difference:.1e}{what}"


@torch.no_grad()
def self_test(policy: CausalLM) -> SelfTest:
    """Try the invariances of matrix products, attention, norms and the head, then all of it together: seconds."""
    with products_in(policy.dtype):
        parts = {**_products(policy), **_attention(policy), **_norms(policy), **_head(policy)}
    return SelfTest(tuple(name for name, same in parts.items() if not same), _difference(policy))


def _products(policy: CausalLM) -> dict[str, bool]:
    if policy.fused is not None:
        products: dict[tuple[int, ...], Any] = {product.shape: product for product in policy.fused.products()}
    else:
        head = policy.sampler.get_output_embeddings()
        layers: list[Any] = [layer for _, layer in product_layers(policy.sampler) if layer is not head]
        products = {tuple(layer.weight.shape): layer for layer in layers}
    found = {}
    for shape, product in products.items():
        inputs = shape[1] if isinstance(product, torch.nn.Linear | Product) else shape[0]  # GPT-2 keeps weights turned
        found[f"product {shape[0]}×{shape[1]}"] = _rows_alone(product, _numbers(MANY, inputs, like=policy))
    return found


def _norms(policy: CausalLM) -> dict[str, bool]:
    layers = {
        (type(m).__name__, m.weight.shape[-1]): m
        for m in policy.sampler.modules()
        if "norm" in type(m).__name__.lower()
    }
    return {f"{name} {n}": _rows_alone(layer, _numbers(MANY, n, like=policy)) for (name, n), layer in layers.items()}


def _head(policy: CausalLM) -> dict[str, bool]:
    width = policy.sampler.get_output_embeddings().weight.shape[1]
    states = _numbers(MANY, width, like=policy)
    return {"head": _rows_alone(lambda rows: policy.next_token_logits(rows), states)}


def _rows_alone(function: Any, rows: Tensor) -> bool:
    """Return whether few rows come out as they do among many."""
    whole = function(rows)
    return all(torch.equal(whole[i : i + FEW], function(rows[i : i + FEW])) for i in (0, len(rows) - FEW))


def _attention(policy: CausalLM) -> dict[str, bool]:
    config = policy.network.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    last, num_keys = torch.linspace(60, 1100, 24).long(), round_up(1100, KEY_MULTIPLE)
    query, key, value = (
        _numbers(2 * n * t * width, 1, like=policy).reshape(2, n, t, width)
        for n, t in ((heads, len(last)), (key_heads, num_keys), (key_heads, num_keys))
    )
    attend = last[:, None] >= torch.arange(num_keys)
    module = torch.nn.Identity()
    whole, _ = invariant_attention(module, query, key, value, attend[None, None])
    same = True
    for row, place in ((0, 0), (1, 3), (1, 7), (0, 13), (1, 23)):  # with the keys that it has, no longer padding
        keys = round_up(int(last[place]) + 1, KEY_MULTIPLE)
        asked, few = (query[row : row + 1, :, place : place + 1], attend[None, None, place : place + 1, :keys])
        alone, _ = invariant_attention(module, asked, key[row : row + 1, :, :keys], value[row : row + 1, :, :keys], few)
        same &= torch.equal(alone[0, 0], whole[row, place])
    return {"attention": same}


def _difference(policy: CausalLM) -> float:
    """Return max |log π as drawn − log π of the learner's forward|."""
    vocabulary = policy.sampler.get_input_embeddings().weight.shape[0]
    lengths = [min(n, policy.context_length - 6) for n in (3, 61)]
    prompts = [TokenPrompt(i, (torch.arange(n) * 7919 + 11) % vocabulary) for i, n in enumerate(lengths)]
    sampled = generate(policy, prompts, 5, Sampling(max_new_tokens=6))
    batch = make_batch([replace(t, rewards=torch.zeros(len(t))) for t in sampled])
    worst = 0.0
    for rows in _orders(len(batch)):
        part = batch.select(rows)
        found = policy.evaluate(part.actions, part.mask, part.truncated, part.inputs).log_probs
        worst = max(worst, float(torch.where(part.mask, found - part.behavior_log_probs, 0.0).abs().max()))
    return worst


def _orders(size: int) -> Iterator[Tensor]:
    yield torch.arange(size)
    yield torch.arange(size).flip(0)[: size // 2]
    yield torch.tensor([size - 1])


def _numbers(rows: int, width: int, *, like: CausalLM) -> Tensor:
    draws = torch.Generator().manual_seed(width)
    return torch.randn(rows, width, generator=draws).to(torch.float64 if like.dtype == torch.float64 else torch.float32)

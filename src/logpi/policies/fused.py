"""The trunk of Llama-shaped networks in fewer operations, for sampling: the module's results to the last bit.

A decoding step of the Hugging Face module is thousands of small operations; under 64 rows they take longer than the
matrix products. Here, the weights of products that share their input are one product, in bf16 laid out for the
processor once per update, and casts, rotations and masks are done once. Whether the bits are the module's is tried
when the policy is made: any network of another kind runs through its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from logpi.policies.attention import KEY_MULTIPLE, KeyValues, invariant_attention

_CHILDREN = {
    "": {"embed_tokens", "layers", "norm", "rotary_emb"},
    "layer": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


def is_llama_shaped(trunk: Any) -> bool:
    """Return whether the trunk has the parts of Llama, and no others: Mistral, Qwen2, Qwen3, SmolLM do."""
    named = {name for name, _ in trunk.named_children()}
    if named != _CHILDREN[""]:
        return False
    for layer in trunk.layers:
        parts = dict(layer.named_children())
        if parts.keys() != _CHILDREN["layer"]:
            return False
        for part in ("self_attn", "mlp"):
            if not {name for name, _ in parts[part].named_children()} <= _CHILDREN[part]:
                return False
    return True


class Product:
    """x ↦ x Wᵀ + b for the rows of one or several linear layers that share their input."""

    def __init__(self, *layers: nn.Linear):
        self.layers = layers
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the layers' weights as they are now."""
        self.packed: Tensor | None = None
        if self.layers[0].weight.dtype != torch.bfloat16:
            return
        weight = torch.cat([layer.weight.detach() for layer in self.layers])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        self.bias = torch.cat([bias.detach() for bias in biases]) if biases else None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return sum(layer.weight.shape[0] for layer in self.layers), self.layers[0].weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            x = x.to(torch.bfloat16)
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        outs = [layer(x) for layer in self.layers]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -1)


_PACKED_ROWS = 64  # what the layout is made for; it serves any number of rows


class FusedTrunk:
    """A Llama-shaped trunk, called as `CausalLM.hidden_states` calls the module."""

    def __init__(self, trunk: Any):
        self.trunk = trunk
        self.layers = [_Layer(layer) for layer in trunk.layers]

    @classmethod
    @torch.no_grad()
    def of(cls, policy: Any) -> FusedTrunk | None:
        """Return the fused trunk of a policy's sampler, or None where it would not give the module's bits."""
        if not is_llama_shaped(policy.sampler.base_model):
            return None
        fused = cls(policy.sampler.base_model)
        vocabulary = policy.sampler.get_input_embeddings().weight.shape[0]
        rows, time = 3, min(16, policy.context_length)
        tokens = (torch.arange(rows * time) * 7919 + 11).view(rows, time) % vocabulary
        positions = torch.arange(time)
        attend = (positions[:, None] >= torch.arange(KEY_MULTIPLE))[None, None]
        asked = tokens, positions.expand(rows, -1), attend
        expected = policy.hidden_states(policy.sampler, *asked, KeyValues())
        return fused if torch.equal(fused(*asked, KeyValues()), expected) else None

    def refresh(self) -> None:
        """Take the weights as they are now, once per update."""
        for product in self.products():
            product.refresh()

    def products(self) -> Iterator[Product]:
        """Yield every layer's products."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Tensor, cache: KeyValues) -> Tensor:
        """Run tokens, positions [rows, time], attend [rows or 1, 1, time, keys] -> [rows, time, width]."""
        hidden = self.trunk.embed_tokens(tokens)
        cos, sin = (part[:, :, None] for part in self.trunk.rotary_emb(hidden, positions))
        # rotate_half(x)·sin = roll(x)·(−sin, sin): a sign moves from one factor to the other
        half = sin.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, (cos, signed_sin), attend, cache, i)
        return self.trunk.norm(hidden)


class _Layer:
    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.attention, self.activation = attention, mlp.act_fn
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.down = Product(attention.o_proj), Product(mlp.down_proj)
        self.gate_up = Product(mlp.gate_proj, mlp.up_proj)
        self.num_key_heads = attention.k_proj.weight.shape[0] // attention.head_dim
        self.num_heads = attention.q_proj.weight.shape[0] // attention.head_dim
        self.head_norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]

    def __call__(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], attend: Tensor, cache: KeyValues, index: int
    ) -> Tensor:
        hidden = hidden + self._attention(self.norms[0](hidden), rotation, attend, cache, index)
        gate, up = self.gate_up(self.norms[1](hidden)).chunk(2, -1)
        # in one piece: an activation's last bits differ where its vectors don't fit into a row
        return hidden + self.down(self.activation(gate.contiguous()) * up)

    def _attention(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Tensor, cache: KeyValues, index: int
    ) -> Tensor:
        rows, time = x.shape[:2]
        heads = self.qkv(x).view(rows, time, -1, self.attention.head_dim)
        turned, value = heads.split((self.num_heads + self.num_key_heads, self.num_key_heads), 2)
        if self.head_norms[0] is not None:
            parts = turned.split((self.num_heads, self.num_key_heads), 2)
            turned = torch.cat([norm(part) for norm, part in zip(self.head_norms, parts, strict=True)], 2)
        cos, signed_sin = rotation
        turned = turned * cos + turned.roll(turned.shape[-1] // 2, -1) * signed_sin
        turned = turned.to(value.dtype)
        query, key = turned.transpose(1, 2).split((self.num_heads, self.num_key_heads), 1)
        keys, values = cache.update(key, value.transpose(1, 2), index)
        out, _ = invariant_attention(self.attention, query, keys, values, attend, self.attention.scaling)
        return self.out(out.reshape(rows, time, -1))

"""The trunk of Llama-shaped networks in fewer operations, for sampling and learning: the module's results to the last
bit.

A decoding step of the Hugging Face module is thousands of small operations; under 64 rows they take longer than the
matrix products. Here, the weights of products that share their input are one product, in bf16 laid out for the
processor once per update, and casts, rotations and masks are done once. The gradients of products, norms and gates are
written out: they keep less between forward and backward, and cast once. Whether the bits are the module's is tried
when the policy is made: any network of another kind runs through its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from logpi.policies.attention import KEY_MULTIPLE, KeyValues, PackedKeyValues, attention_of
from logpi.policies.gradients import gradient_of
from logpi.policies.packing import Packing
from logpi.policies.products import Product

_CHILDREN = {
    "": {"embed_tokens", "layers", "norm", "rotary_emb"},
    "layer": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}

Attend = Callable[
    [Tensor, Tensor, Tensor, int], Tensor
]  # (query, key, value [..., heads, width], layer) -> [..., width]
Drop = Callable[[Tensor, int], Tensor]  # (what is added to the residual stream, at which site) -> what is left of it


def keep(x: Tensor, site: int) -> Tensor:
    """Drop nothing."""
    return x


def is_llama_shaped(trunk: Any) -> bool:
    """Return whether the trunk has the parts of Llama, and no others: Mistral, Qwen2, Qwen3, SmolLM do."""
    named = {name for name, _ in trunk.named_children()}
    if named != _CHILDREN[""] or not hasattr(trunk.norm, "variance_epsilon"):
        return False
    for layer in trunk.layers:
        parts = dict(layer.named_children())
        if parts.keys() != _CHILDREN["layer"] or "SiLU" not in type(layer.mlp.act_fn).__name__:
            return False
        for part in ("self_attn", "mlp"):
            if not {name for name, _ in parts[part].named_children()} <= _CHILDREN[part]:
                return False
    return True


class _Embedded(torch.autograd.Function):
    """Rows of an embedding, one a token; their gradient is added in place, but the padding token's, as in torch."""

    @staticmethod
    def forward(ctx, weight, tokens, padding):
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding = weight, padding
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, *slopes):
        (tokens,), (slope,) = ctx.saved_tensors, slopes
        if ctx.padding is not None:
            slope = slope.masked_fill((tokens == ctx.padding)[:, None], 0)
        gradient_of(ctx.weight).index_add_(0, tokens, slope)
        return None, None, None


def _normalised(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return w · x r and r = (mean x² + ε)^−½."""
    wide = x.float()
    r = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return weight * (wide * r).to(x.dtype), r


def _slopes_of_norm(
    slope: Tensor, x: Tensor, scaled: Tensor, weight: Tensor, r: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ∂x and ∂w of `_normalised`, of ∂y and scaled = x r, which is used up:

    ∂w = Σ ∂y · x r, ∂x = r (g − x r · mean(g · x r)) with g = ∂y · w.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """
    slope = slope.float()
    of_weight = (slope * scaled).flatten(0, -2).sum(0) if wanted[1] else None
    if not wanted[0]:
        return None, of_weight
    g = slope * weight
    mean = (g * scaled).mean(-1, keepdim=True)
    return g.sub_(scaled.mul_(mean)).mul_(r).to(x.dtype), of_weight


class _Norm(torch.autograd.Function):
    """`_normalised`."""

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        found, r = _normalised(x, weight, epsilon)
        ctx.save_for_backward(x, weight, r)
        return found

    @staticmethod
    def backward(ctx, *slopes):
        x, weight, r = ctx.saved_tensors
        return *_slopes_of_norm(slopes[0], x, x.float() * r, weight, r, ctx.needs_input_grad), None


class _NormedProduct(torch.autograd.Function):
    """The product of what is normalised, which is made again in backward: x and r are kept."""

    @staticmethod
    def forward(ctx, x, weight, epsilon, product, *parameters):
        normed, r = _normalised(x, weight, epsilon)
        ctx.save_for_backward(x, weight, r)
        ctx.product = product
        return product.forward(normed.to(product.dtype))

    @staticmethod
    def backward(ctx, *slopes):
        x, weight, r = ctx.saved_tensors
        scaled = x.float() * r
        slope = ctx.product.pull_back(slopes[0], (weight * scaled.to(x.dtype)).to(ctx.product.dtype))
        found = _slopes_of_norm(slope, x, scaled, weight, r, ctx.needs_input_grad)
        return *found, None, None, *[None] * len(ctx.product.parameters)


def _gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up of [..., gate and up]."""
    gate, up = gate_up.chunk(2, -1)
    # in one piece: an activation's last bits differ where its vectors don't fit into a row
    return nn.functional.silu(gate.contiguous()).mul_(up)


class _GatedProduct(torch.autograd.Function):
    """The product of what is gated, which is made again in backward: gate and up are kept.

    ∂up = ∂y silu(gate), ∂gate = ∂y up silu′(gate).
    """

    @staticmethod
    def forward(ctx, gate_up, product, *parameters):
        ctx.save_for_backward(gate_up)
        ctx.product = product
        return product.forward(_gated(gate_up))

    @staticmethod
    def backward(ctx, *slopes):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        gate = gate.contiguous()
        gating = nn.functional.silu(gate)
        slope = ctx.product.pull_back(slopes[0], gating * up)
        found = torch.empty_like(gate_up)
        of_gate, of_up = found.chunk(2, -1)
        torch.mul(slope, gating, out=of_up)
        torch.ops.aten.silu_backward.grad_input(slope.mul_(up), gate, grad_input=of_gate)
        return found, None, *[None] * len(ctx.product.parameters)


def _norm(module: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _Norm.apply(x, module.weight, module.variance_epsilon)
    return _normalised(x, module.weight, module.variance_epsilon)[0]


def _normed_product(module: Any, product: Product, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _NormedProduct.apply(x, module.weight, module.variance_epsilon, product, *product.parameters)
    return product(_normalised(x, module.weight, module.variance_epsilon)[0])


def _gated_product(product: Product, gate_up: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _GatedProduct.apply(gate_up, product, *product.parameters)
    return product(_gated(gate_up))


class FusedTrunk:
    """A Llama-shaped trunk: `sample` as `CausalLM.hidden_states` calls the module, `packed` as `packed_states` does."""

    def __init__(self, trunk: Any, source: Any):
        self.trunk, self.embedding = trunk, source.embed_tokens
        self.layers = [_Layer(*both) for both in zip(trunk.layers, source.layers, strict=True)]

    @classmethod
    def of(cls, policy: Any) -> FusedTrunk | None:
        """Return the fused trunk of a policy, or None where it would not give the bits of the sampler's module and of
        the learner's."""
        trunk = policy.sampler.base_model
        if not is_llama_shaped(trunk):
            return None
        fused = cls(trunk, policy.network.base_model)
        vocabulary = policy.sampler.get_input_embeddings().weight.shape[0]
        rows, time = 3, min(16, policy.context_length)
        tokens = (torch.arange(rows * time) * 7919 + 11).view(rows, time) % vocabulary
        positions = torch.arange(time)
        attend = (positions[:, None] >= torch.arange(KEY_MULTIPLE))[None, None]
        asked = tokens, positions.expand(rows, -1), attend
        packing = Packing.of([time], [], [], [])
        learned = torch.nn.functional.pad(tokens[0], (0, len(packing.positions) - time)), packing
        with torch.no_grad():
            expected = policy.hidden_states(policy.sampler, *asked, KeyValues())
            same = torch.equal(fused.sample(*asked, KeyValues()), expected)
        expected = policy.packed_states(*learned)
        if not same or not torch.equal(fused.packed(*learned), expected):
            return None
        for product in fused.products():
            product.release()
        return fused

    def refresh(self) -> None:
        """Take the weights as they are now, once per update."""
        for product in self.products():
            product.refresh()

    def products(self) -> Iterator[Product]:
        """Yield every layer's products."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)

    def sample(self, tokens: Tensor, positions: Tensor, attend: Tensor, cache: KeyValues) -> Tensor:
        """Run tokens, positions [rows, time], attend [rows or 1, 1, time, keys] -> [rows, time, width]."""

        def attention(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
            scaled = query.transpose(1, 2) * self.layers[layer].attention.scaling
            return attention_of(scaled, keys, values, masked).flatten(2)

        masked = ~attend
        hidden = self.trunk.embed_tokens(tokens)
        return self._run(hidden, self._rotation(hidden, positions), attention)

    def packed(
        self, tokens: Tensor, packing: Packing, cache: PackedKeyValues | None = None, drop: Drop = keep
    ) -> Tensor:
        """Run packed tokens [places] -> [places, width], with gradients; `cache` gets their keys and values, and `drop`
        what is added to the residual stream, and at which of its `num_sites`."""

        def attention(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            key, value = key.contiguous(), value.contiguous()  # views would keep all that they are parts of
            if cache is not None:
                cache.keys[layer], cache.values[layer] = key, value
            return packing.attention(query, key, value, self.layers[layer].attention.scaling).flatten(1)

        hidden = drop(_Embedded.apply(self.embedding.weight, tokens, self.embedding.padding_idx), 0)
        cos, signed_sin = self._rotation(hidden[None], packing.positions[None])
        return self._run(hidden, (cos[0], signed_sin[0]), attention, drop)

    @property
    def num_sites(self) -> int:
        """How often something is added to the residual stream: the embedding, each attention, each MLP."""
        return 1 + 2 * len(self.layers)

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (part[:, :, None] for part in self.trunk.rotary_emb(hidden, positions))
        # rotate_half(x)·sin = roll(x)·(−sin, sin): a sign moves from one factor to the other
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)

    def _run(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], attention: Attend, drop: Drop = keep) -> Tensor:
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, attention, i, drop)
        return _norm(self.trunk.norm, hidden)


class _Layer:
    def __init__(self, layer: Any, source: Any):
        self.attention = layer.self_attn
        self.norms = layer.input_layernorm, layer.post_attention_layernorm

        def product(part: str, *names: str) -> Product:
            both = (getattr(which, part) for which in (layer, source))
            return Product(*([getattr(module, name) for name in names] for module in both))

        self.qkv, self.out = product("self_attn", "q_proj", "k_proj", "v_proj"), product("self_attn", "o_proj")
        self.gate_up, self.down = product("mlp", "gate_proj", "up_proj"), product("mlp", "down_proj")
        width = self.attention.head_dim
        self.num_heads, self.num_key_heads = (
            getattr(self.attention, name).weight.shape[0] // width for name in ("q_proj", "k_proj")
        )
        self.head_norms: list[Any] = [getattr(self.attention, name, None) for name in ("q_norm", "k_norm")]

    def __call__(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], attention: Attend, index: int, drop: Drop
    ) -> Tensor:
        heads = self._heads(_normed_product(self.norms[0], self.qkv, hidden), rotation)
        hidden = hidden + drop(self.out(attention(*heads, index)), 2 * index + 1)
        added = _gated_product(self.down, _normed_product(self.norms[1], self.gate_up, hidden))
        return hidden + drop(added, 2 * index + 2)

    def _heads(self, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value [..., heads, width], turned to their positions."""
        heads = qkv.unflatten(-1, (-1, self.attention.head_dim))
        turned, value = heads.split((self.num_heads + self.num_key_heads, self.num_key_heads), -2)
        if self.head_norms[0] is not None:
            parts = turned.split((self.num_heads, self.num_key_heads), -2)
            turned = torch.cat([_norm(norm, part) for norm, part in zip(self.head_norms, parts, strict=True)], -2)
        cos, signed_sin = rotation
        turned = turned * cos + turned.roll(turned.shape[-1] // 2, -1) * signed_sin
        query, key = turned.to(value.dtype).split((self.num_heads, self.num_key_heads), -2)
        return query, key, value

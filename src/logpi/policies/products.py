"""Products with the weights of linear layers, for sampling and learning alike: the layers' results to the last bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from logpi.policies.adapters import add_gradients, base_of, merged_weight
from logpi.policies.token_log_probs import pad_rows


class Product:
    """x ↦ x Wᵀ + b for the rows of one or several linear layers that share their input.

    `layers` are the sampler's, `sources` the learner's: fp32 weights, maybe with an adapter, which get the gradient. In
    bf16 the sampler's W is held here, laid out for the processor. In fp32 few rows are multiplied as (W xᵀ)ᵀ where that
    is tried to have the same bits: the library shares x Wᵀ badly between threads then.
    """

    def __init__(self, layers: list[nn.Linear], sources: list[Any]):
        self.layers, self.sources = layers, sources
        self.dtype = layers[0].weight.dtype
        self.rows = [len(layer.weight) for layer in layers]
        self.shape = sum(self.rows), layers[0].weight.shape[1]  # outputs and inputs
        self.parameters = [p for source in sources for p in source.parameters()]
        self.packed: Tensor | None = None
        self.bias: Tensor | None = None
        self.turns = self.dtype == torch.float32 and all(map(_turns, layers))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the sources' weights as they are now, where the product has its own."""
        if self.dtype == torch.bfloat16:
            weight = torch.cat([merged_weight(source).to(torch.bfloat16) for source in self.sources])
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
            biases = [base.bias for base in map(base_of, self.sources) if base.bias is not None]
            self.bias = torch.cat(biases).to(torch.bfloat16) if biases else None

    def release(self) -> None:
        """Drop the sampler's own copies of what the product holds; adapted layers run by themselves again."""
        if self.packed is not None:
            for layer, source in zip(self.layers, self.sources, strict=True):
                layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
                vars(source).pop("forward", None)

    def weight(self) -> Tensor:
        """Return W [outputs, inputs]."""
        return _joined([layer.weight for layer in self.layers], 0) if self.packed is None else self.packed.to_dense()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return _Linear.apply(x, self, *self.parameters) if torch.is_grad_enabled() else self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of rows in its dtype, without gradients."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        if self.turns and x.numel() <= _TURNED_ROWS * self.shape[1]:
            return _joined([_turned(layer, x) for layer in self.layers], -1).contiguous()
        return _joined([layer(x) for layer in self.layers], -1)

    def pull_back(self, slope: Tensor, x: Tensor) -> Tensor:
        """Add to the sources' gradients what ∂y and x [rows, inputs] make of them; return ∂x = ∂y W."""
        for source, part in zip(self.sources, slope.split(self.rows, -1), strict=True):
            add_gradients(source, part, x)
        return slope @ self.weight()


_PACKED_ROWS = 64  # what the layout is made for; it serves any number of rows
_TURNED_MULTIPLE = 16  # of rows: with 8 the bits are others
_TURNED_ROWS = 128  # with more, turning back takes what it gains


def _turned(layer: Any, x: Tensor) -> Tensor:
    """Return x Wᵀ + b as (W xᵀ + b)ᵀ."""
    rows = x.flatten(0, -2)
    columns = pad_rows(rows, _TURNED_MULTIPLE).T
    found = layer.weight @ columns if layer.bias is None else torch.addmm(layer.bias[:, None], layer.weight, columns)
    return found.T[: len(rows)].unflatten(0, x.shape[:-1])


@torch.no_grad()
def _turns(layer: Any) -> bool:
    """Return whether few rows have, turned, the bits that they have among many, and there are threads to share them."""
    if torch.get_num_threads() == 1 or not isinstance(layer, nn.Linear):
        return False
    rows = torch.randn(2 * _TURNED_MULTIPLE, layer.in_features, generator=torch.Generator().manual_seed(0))
    return torch.equal(_turned(layer, rows[: _TURNED_MULTIPLE // 2]), layer(rows)[: _TURNED_MULTIPLE // 2])


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _Linear(torch.autograd.Function):
    """A `Product` whose parameters' gradients are added in place; they are named so that autograd comes by."""

    @staticmethod
    def forward(ctx, x, product, *parameters):
        ctx.save_for_backward(x)
        ctx.product = product
        return product.forward(x)

    @staticmethod
    def backward(ctx, *slopes):
        (x,) = ctx.saved_tensors
        return ctx.product.pull_back(slopes[0], x), None, *[None] * len(ctx.product.parameters)

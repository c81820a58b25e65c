"""LoRA through peft: adding an adapter, running it merged, looking under it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from logpi.errors import InputError, missing_extra
from logpi.policies.gradients import add_gradient


def product_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) for every layer that is a matrix product with weights: Linear and GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            yield name, layer


def add_lora(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    """Wrap `module` in a peft LoRA adapter; the base weights are frozen, the adapter starts as the identity."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise missing_extra("peft", "lora", "LoRA") from None
    try:
        with warnings.catch_warnings():  # peft asks transformers 5 for what it calls by another name now
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    except ValueError as error:
        raise InputError(f"LoRA does not fit this model: {error}; set lora.target_modules") from error
    products = {id(layer) for _, layer in product_layers(adapted)}
    for name, layer in adapted.named_modules():
        if is_adapted(layer) and id(layer.base_layer) not in products:
            raise InputError(f"lora.target_modules names {name}, which is no matrix product; leave it out")
    return adapted


def is_adapted(layer: nn.Module) -> bool:
    """Return whether peft put a LoRA adapter on this layer."""
    return hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight")


def base_of(layer: Any) -> Any:
    """Return the layer under an adapter; a layer without one is its own."""
    return getattr(layer, "base_layer", layer)


def merged_weight(layer: Any) -> Tensor:
    """Return W + s·BA, in the base weight's dtype; of a layer without an adapter, its W."""
    weight = base_of(layer).weight
    if is_adapted(layer):
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def add_gradients(layer: Any, slope: Tensor, x: Tensor) -> None:
    """Add to the gradients of a linear layer's parameters, of ∂y [rows, outputs] and x [rows, inputs]: ∂W = ∂yᵀ x and
    ∂b = Σ ∂y; of an adapted one, ∂A and ∂B instead of ∂W."""
    base = base_of(layer)
    if is_adapted(layer):
        a, b, scaling = _factors(layer)
        for factor, found in zip((a, b), _slopes_of_factors(slope, x, a, b, scaling), strict=True):
            add_gradient(factor, found)
    elif base.weight.requires_grad:
        add_gradient(base.weight, slope.T @ x)
    if base.bias is not None and base.bias.requires_grad:
        add_gradient(base.bias, slope.sum(0, dtype=torch.promote_types(slope.dtype, torch.float32)))


def _factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """Return A, B and s of an adapted layer."""
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _slopes_of_factors(slope: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Return ∂A = s (∂y B)ᵀ x and ∂B = s ∂yᵀ (x Aᵀ), computed in the dtype of ∂y and x."""
    through = slope @ b.to(slope.dtype)  # [rows, r]
    of_b = slope.T @ (x @ a.to(slope.dtype).T)
    return scaling * (through.T @ x).to(a.dtype), scaling * of_b.to(b.dtype)


class _MergedProduct(torch.autograd.Function):
    """x ↦ layer(x), whose weight is W + s·BA; gradients of A and B, none of W; ∂x = ∂y (W + s·BA), all in the dtype of
    the merged weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Any, scaling: float) -> Tensor:
        ctx.layer, ctx.scaling = layer, scaling
        ctx.save_for_backward(x, a, b)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        weight = ctx.layer.weight if isinstance(ctx.layer, nn.Linear) else ctx.layer.weight.T  # GPT-2 keeps it turned
        slope, rows = (t.flatten(0, -2).to(weight.dtype) for t in (slopes[0], x))
        of_x = (slope @ weight).reshape(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
        return of_x, *_slopes_of_factors(slope, rows, a, b, ctx.scaling), None, None


def run_merged(layer: Any, merged: nn.Module) -> None:
    """Make an adapted layer compute what `merged`, the sampler's layer with the weight W + s·BA, computes: the same
    bits, and one product instead of three."""
    a, b, scaling = _factors(layer)
    layer.forward = lambda x, *args, **kwargs: _MergedProduct.apply(x, a, b, merged, scaling)


def without_lora(module: Any) -> nn.Module:
    """Return the base network of a peft model as a copy that shares the frozen base weights."""
    shared = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    with torch.no_grad():
        return copy.deepcopy(module, shared).unload().eval()


def merged_copy(module: Any) -> Any:
    """Return the base network with the adapter merged into weights of its own; the peft model stays as it is."""
    return copy.deepcopy(module).merge_and_unload().eval()

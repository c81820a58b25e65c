"""LoRA through peft: adding an adapter, merging it into a sampling weight, looking under it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from logpi.errors import InputError, missing_extra


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
        return get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    except ValueError as error:
        raise InputError(f"LoRA does not fit this model: {error}; set lora.target_modules") from error


def is_adapted(layer: nn.Module) -> bool:
    """Return whether peft put a LoRA adapter on this layer."""
    return hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight")


def merged_weight(layer: Any) -> Tensor:
    """Return W + s·BA of an adapted layer, in the base weight's dtype."""
    weight = layer.base_layer.weight
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def without_lora(module: Any) -> nn.Module:
    """Return the base network of a peft model as a copy that shares the frozen base weights."""
    shared = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    with torch.no_grad():
        return copy.deepcopy(module, shared).unload().eval()


def merged_copy(module: Any) -> Any:
    """Return the base network with the adapter merged into weights of its own; the peft model stays as it is."""
    return copy.deepcopy(module).merge_and_unload().eval()

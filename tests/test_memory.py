"""The memory estimate against the tensors that are really there."""

from __future__ import annotations

import pytest
import torch
from models import NATIVE_BF16, policy, sample

from logpi.policies.memory import Work, memory_estimate
from logpi.trajectory import make_batch


def held(tensors) -> int:
    """Return the bytes of the different storages behind tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", [torch.float32] + [torch.bfloat16] * NATIVE_BF16)
def test_weights_and_what_a_token_leaves_for_backward(dtype):
    tiny = policy("llama", dtype)
    batch = make_batch(sample(tiny, [40, 64], 8, 30))
    weights = {p.untyped_storage().data_ptr() for p in tiny.sampler.parameters()}
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights and tensor.dtype.is_floating_point:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tiny.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs)
    num_tokens = int(batch.mask.sum()) + 40 + 64
    found = memory_estimate(tiny.network.config, Work(dtype, 16, 64, 30, num_tokens))
    assert found["weights"] == held(tiny.module.parameters())
    assert found["gradient"] == found["weights"] and found["optimiser"] == 2 * found["weights"]
    own = [layer.weight for layer, _ in tiny._owned]
    assert found["sampling_weights"] == 2 * held(own)  # of it one half laid out for the processor
    assert 0.75 < found["activations"] / held(kept) < 1.25


def test_an_adapter_has_a_small_gradient_and_a_reference_costs_full_weights_only():
    config = policy("llama").network.config
    full = memory_estimate(config, Work(torch.float32, 8, 10, 10, 64, has_reference=True))
    lora = memory_estimate(config, Work(torch.float32, 8, 10, 10, 64, lora_rank=2, has_reference=True))
    assert full["reference"] == full["weights"] and lora["reference"] == 0
    assert lora["optimiser"] < full["optimiser"] / 3 and lora["total"] < full["total"]

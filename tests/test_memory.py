"""The memory estimate against the tensors that are really there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import NATIVE_BF16, policy, sample

from logpi import api, platforms
from logpi.config import make_config
from logpi.errors import InputError
from logpi.policies import memory
from logpi.policies.memory import Work, memory_estimate, require_memory
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
    if dtype == torch.bfloat16:
        own = [product.packed for product in [*tiny.fused.products(), tiny.sampler_head]]
        assert found["sampling_weights"] == sum(2 * w.numel() for w in own) + held([tiny.sampler_head.layers[0].weight])
    else:
        assert found["sampling_weights"] == 0
    assert 0.75 < found["activations"] / held(kept) < 1.25


def test_parts_add_up():
    """Of sampling and of learning: what one frees the other seldom takes (benchmarks/memory.py)."""
    found = memory_estimate(policy("llama").network.config, Work(torch.float32, 8, 10, 10, 64))
    assert found["total"] == sum(size for name, size in found.items() if name != "total")


def test_an_adapter_has_a_small_gradient_and_a_reference_costs_full_weights_only():
    config = policy("llama").network.config
    full = memory_estimate(config, Work(torch.float32, 8, 10, 10, 64, has_reference=True))
    lora = memory_estimate(config, Work(torch.float32, 8, 10, 10, 64, lora_rank=2, has_reference=True))
    assert full["reference"] == full["weights"] and lora["reference"] == 0
    assert lora["optimiser"] < full["optimiser"] / 3 and lora["total"] < full["total"]


@pytest.mark.parametrize(
    ("share", "remedy"),
    [
        (0.7, "--learner.micro-batch-tokens 256 --rollout.max-rows 16 brings it to about"),
        (0.25, "--policy.lora.r 16 --learner.micro-batch-tokens 256 --rollout.max-rows 16 brings it to about"),
        (0.01, "take a smaller model"),
    ],
)
def test_a_run_that_the_machine_is_too_small_for_is_refused_with_what_makes_it_fit(
    tmp_path, monkeypatch, share, remedy
):
    config = api.resolve("smollm2-addition", {"learner": {"micro_batch_tokens": 8192}, "policy": {"dtype": "float32"}})
    shape = api.dry_run(config)["memory"]
    there = int(share * shape["total"])
    monkeypatch.setattr(memory, "memory_bytes", lambda: there)
    with pytest.raises(InputError, match=remedy) as told:
        api.run(config, folder=tmp_path / "run")
    assert f"the machine has {there / 1e9:.1f} GB" in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_run_within_the_estimates_error_is_not_refused(monkeypatch):
    config = make_config({"recipe": "custom", "task": {"name": "addition"}, "policy": {"model": "m"}}, "test")
    shape = policy("llama").network.config
    total = memory_estimate(shape, Work.of(config, prompt_length=0))["total"]
    for there, is_refused in ((0.76 * total, False), (0.74 * total, True)):
        monkeypatch.setattr(memory, "memory_bytes", lambda there=there: int(there))
        if is_refused:
            with pytest.raises(InputError, match="the run needs about"):
                require_memory(config, shape)
        else:
            require_memory(config, shape)


def test_the_machines_memory_is_known_here():
    found = platforms.memory_bytes()
    assert found is not None and 10**9 < found < 10**14


KERNELS = """
import ctypes, sys, torch
from logpi.trainer import use_threads

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks used free top"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Heap
use_threads(1)
held = []
for first in (8, 4008):
    for rows in range(first, first + 4000, 8):
        torch.zeros(rows, 64, dtype=torch.bfloat16) @ torch.zeros(64, 64, dtype=torch.bfloat16)
    held.append(libc.mallinfo2().used)
print(held[1] - held[0])
"""


@pytest.mark.skipif(not NATIVE_BF16 or platform.libc_ver()[0] != "glibc", reason="bf16 kernels, glibc's count of bytes")
def test_the_kernels_of_ever_new_shapes_do_not_fill_the_memory():
    """The second half of a thousand shapes takes next to nothing; 278 MB without a limit."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    clean["PYTHONPATH"] = str(Path(platforms.__file__).parents[1])
    found = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, check=True, env=clean)
    assert int(found.stdout) < 10 * 2**20

"""What a run of a language model will hold in memory, from shapes alone, before weights load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from logpi.device import resolve_dtype
from logpi.errors import InputError
from logpi.platforms import memory_bytes
from logpi.policies.attention import KEY_MULTIPLE, round_up
from logpi.policies.token_log_probs import CHUNK_BYTES

PROCESS = 400 * 10**6  # Python, torch, transformers and what they load
SURELY = 0.75  # an estimate may be a quarter too high


@dataclass(frozen=True)
class Work:
    """What decides how much memory a run needs, besides its model."""

    dtype: torch.dtype  # of products
    rows: int  # completions side by side
    prompt_length: int
    completion_length: int
    micro_batch_tokens: int
    lora_rank: int | None = None
    has_reference: bool = False

    @classmethod
    def of(cls, run: Any, prompt_length: int) -> Work:
        """Take it from a run's configuration and the length of a prompt."""
        return cls(
            resolve_dtype(run.policy.dtype),
            min(run.rollout.max_rows, run.rollout.num_prompts * run.rollout.num_generations),
            prompt_length,
            run.rollout.max_completion_length,
            run.learner.micro_batch_tokens,
            None if run.policy.lora is None else run.policy.lora.r,
            bool(run.algorithm.beta),
        )


def can_estimate(model_config: Any) -> bool:
    """Return whether the network is of a kind whose memory is known here: one with attention."""
    return hasattr(model_config.get_text_config(), "num_attention_heads")


def memory_estimate(model_config: Any, work: Work) -> dict[str, int]:
    """Return bytes by purpose and their total at the peak. Sampling and gradient come one after the other, and both
    count: memory is kept when it is freed, and what one of them leaves is seldom of the sizes that the other takes."""
    from transformers import AutoModelForCausalLM

    config = model_config.get_text_config()
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(model_config)
    width = 8 if work.dtype == torch.float64 else 4
    num_parameters = sum(p.numel() for p in module.parameters())
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    products = sum(layer.weight.numel() for layer in layers)
    trained = num_parameters
    if work.lora_rank is not None:
        trained = sum(work.lora_rank * (layer.in_features + layer.out_features) for layer in layers)
    is_bf16 = work.dtype == torch.bfloat16
    head = module.get_output_embeddings().weight.numel()
    own = 2 * (products + head) if is_bf16 else width * products * (work.lora_rank is not None)  # the head: two layouts
    logits = (2 if is_bf16 else width) * config.vocab_size
    parts = {
        "process": PROCESS,
        "weights": width * num_parameters,
        "sampling_weights": own,
        "reference": width * num_parameters if work.has_reference and work.lora_rank is None else 0,
        "optimiser": 2 * width * trained,
        "gradient": width * trained,
        "activations": work.micro_batch_tokens * _of_a_token(config, work),
        "logits": min(work.micro_batch_tokens * logits, CHUNK_BYTES),
        "cache": _cache(config, work) + work.rows * logits,
    }
    return {**parts, "total": sum(parts.values())}


def require_memory(run: Any, model_config: Any) -> None:
    """Raise InputError where the machine is too small for a run, with an option that makes it fit, if one does."""
    work, there = Work.of(run, prompt_length=0), memory_bytes()
    if there is None or not can_estimate(model_config):
        return
    found = memory_estimate(model_config, work)
    if SURELY * found["total"] <= there:
        return
    parts = ", ".join(
        f"{name.replace('_', ' ')} {found[name] / 1e9:.1f}"
        for name in ("weights", "sampling_weights", "reference", "optimiser", "gradient", "activations", "cache")
        if found[name]
    )
    remedy = "take a smaller model"
    for option, smaller in _smaller(work):
        total = memory_estimate(model_config, smaller)["total"]
        if total <= there:
            remedy = f"{option} brings it to about {total / 1e9:.1f} GB"
            break
    raise InputError(
        f"policy.model: the run needs about {found['total'] / 1e9:.1f} GB of memory ({parts}), the machine has "
        f"{there / 1e9:.1f} GB; {remedy}"
    )


def _smaller(work: Work) -> Iterator[tuple[str, Work]]:
    """Yield options that need less memory, those that change the result last."""
    few = replace(work, micro_batch_tokens=min(256, work.micro_batch_tokens), rows=min(16, work.rows))
    options = "--learner.micro-batch-tokens 256 --rollout.max-rows 16"
    yield options, few
    if work.lora_rank is None:
        yield "--policy.lora.r 16", replace(work, lora_rank=16)
        yield f"--policy.lora.r 16 {options}", replace(few, lora_rank=16)


def bytes_of_position(config: Any, dtype: torch.dtype) -> int:
    """Return what the keys and values of one position take in all layers, of products in this dtype."""
    _, key_heads, width = _heads(config)
    size = {torch.bfloat16: 2, torch.float64: 8}.get(dtype, 4)
    return 2 * config.num_hidden_layers * key_heads * width * size


def _heads(config: Any) -> tuple[int, int, int]:
    """Return heads, key heads and a head's width."""
    heads = config.num_attention_heads
    return (
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _cache(config: Any, work: Work) -> int:
    keys = round_up(work.prompt_length + work.completion_length, KEY_MULTIPLE)
    return work.rows * keys * bytes_of_position(config, work.dtype)


def _of_a_token(config: Any, work: Work) -> int:
    """Return the bytes that a token leaves between forward and backward, for a Llama-shaped trunk: of each layer the
    two norms' inputs in fp32, queries, keys and values, what attention gives, gate and up."""
    heads, key_heads, width = _heads(config)
    hidden, query, key = config.hidden_size, heads * width, key_heads * width
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    size = {torch.bfloat16: 2, torch.float64: 8}.get(work.dtype, 4)
    return config.num_hidden_layers * (2 * max(size, 4) * hidden + 2 * size * (query + key + inner))

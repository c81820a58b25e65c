"""Families of models: each runs through the engine with the learner's bits, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import NATIVE_BF16, sample

from logpi.errors import InputError
from logpi.policies import attention
from logpi.policies.causal_lm import CausalLM
from logpi.policies.loading import check_forward, context_length
from logpi.rollout.self_test import SAME_BITS, self_test
from logpi.trajectory import make_batch

DTYPES = [torch.float32] + [torch.bfloat16] * NATIVE_BF16
SHAPE: dict[str, Any] = dict(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=192, initializer_range=0.25, eos_token_id=0, bos_token_id=None, pad_token_id=None,
)  # fmt: skip
TIED, GROUPED = dict(tie_word_embeddings=True), dict(num_key_value_heads=2)
WINDOW, NARROW = dict(sliding_window=96), dict(head_dim=16)
ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {  # class, configuration, whether its trunk is fused
    "llama, full heads, tied": ("Llama", dict(num_key_value_heads=4, **TIED), True),
    "llama, biases": ("Llama", dict(attention_bias=True, mlp_bias=True, **GROUPED), True),
    "llama 3": ("Llama", dict(rope_scaling=dict(original_max_position_embeddings=64, **ROPE), **GROUPED), True),
    "qwen2, tied": ("Qwen2", dict(**GROUPED, **TIED), True),
    "qwen2, window in a layer": (
        "Qwen2",
        dict(use_sliding_window=True, max_window_layers=1, **WINDOW, **GROUPED),
        True,
    ),
    "qwen3, one key head": ("Qwen3", dict(num_key_value_heads=1, **NARROW), True),
    "mistral, window": ("Mistral", dict(**WINDOW, **GROUPED), True),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 1], **GROUPED), True),
    "smollm3, a layer without positions": ("SmolLM3", dict(no_rope_layers=[1, 0], **GROUPED), False),
    "gemma": ("Gemma", dict(num_key_value_heads=1, **NARROW), False),
    "gemma2, no caps": (
        "Gemma2",
        dict(attn_logit_softcapping=None, final_logit_softcapping=None, **WINDOW, **GROUPED, **NARROW),
        False,
    ),
    "gemma3": ("Gemma3", dict(**WINDOW, **GROUPED, **NARROW), False),
    "phi, full heads": ("Phi", dict(partial_rotary_factor=0.5), False),
    "phi3, window": ("Phi3", dict(**WINDOW, **GROUPED), False),
    "olmo2": ("Olmo2", GROUPED, False),
    "gpt2": ("GPT2", dict(attn_pdrop=0.0), False),
    "gpt_neox, tied, in a row": ("GPTNeoX", dict(rotary_pct=0.5, use_parallel_residual=False, **TIED), False),
}


def made(name: str, options: dict[str, Any], dtype: torch.dtype) -> CausalLM:
    """Return a tiny policy of a family, no norm or bias at a value that hides a mistake."""
    attention.register()
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**(SHAPE | options))
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    for parameter_name, parameter in module.named_parameters():
        if parameter_name.endswith("bias") or "norm" in parameter_name:
            mean = "weight" in parameter_name and "Gemma" not in name  # Gemma's norms add 1
            torch.nn.init.normal_(parameter, float(mean), 0.1)
    return CausalLM(module, None, eos_token_ids=(0,), context_length=context_length(config), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_and_learner_have_the_same_bits_and_the_models_own_log_probs(family, dtype):
    name, options, is_fused = FAMILIES[family]
    policy = made(name, options, dtype)
    assert (policy.fused is not None) is is_fused
    check_forward(policy, family)  # raises where ours is not the module's own forward
    assert self_test(policy).line() == SAME_BITS
    trajectories = sample(policy, [50, 7], 4, 30)  # 80 of 96 positions of a window
    batch = make_batch(trajectories)
    found = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs
    assert torch.equal(found.detach(), torch.where(batch.mask, batch.behavior_log_probs, 0.0))


def test_a_window_limits_the_context():
    """Within a window every layer sees all that came before: there is nothing else to compute."""
    assert made("Mistral", WINDOW | GROUPED, torch.float32).context_length == WINDOW["sliding_window"]


def test_attention_that_caps_its_scores_is_refused():
    with pytest.raises(InputError, match="attention uses softcap, which logpi does not compute"):
        check_forward(made("Gemma2", dict(**GROUPED, **NARROW), torch.float32), "gemma2")

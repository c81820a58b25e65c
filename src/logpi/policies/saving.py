"""Writing a trained policy in the format that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from logpi.policies import attention
from logpi.policies.mlp import MLP


def save_policy(policy: Any, folder: Path) -> None:
    """Write a policy: a causal LM or an encoder as a Hugging Face folder (loadable by AutoModelForCausalLM, and
    AutoModelForTokenClassification or AutoModelForMaskedLM), LoRA merged into it with the adapter beside it in peft's
    format, a value head as value_head.safetensors, an MLP as safetensors."""
    if isinstance(policy, MLP):
        save_file(policy.module.state_dict(), folder / "mlp.safetensors")
        return
    network: Any = policy.network
    if getattr(policy, "is_lora", False):
        from logpi.policies.adapters import merged_copy

        policy.module.save_pretrained(folder / "adapter")
        file = folder / "adapter" / "adapter_config.json"
        settings = json.loads(file.read_text())
        settings["target_modules"] = sorted(settings["target_modules"])  # peft writes a set, in any order
        file.write_text(json.dumps(settings, indent=2, sort_keys=True))
        network = merged_copy(policy.module)
    with attention.replaced_by("sdpa", network):  # what others load must not ask for an attention that only logpi has
        network.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.has_values:
        save_file(policy.value_head.state_dict(), folder / "value_head.safetensors")


def load_mlp(policy: MLP, folder: Path) -> None:
    """Put saved weights into an MLP of the same shape."""
    policy.module.load_state_dict(load_file(folder / "mlp.safetensors"))

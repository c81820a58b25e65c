"""A Hugging Face language model small enough to count out: the tabular policy's prompts, tokens and completions.

Its parameters are shared by all states, its prompts have different lengths, its completions go through the prompt pass,
the cache and the chunked log-probs of every other language model. float64 throughout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.exact.tabular import END, NUM_PROMPTS, PREFIXES, VOCABULARY
from logpi.policies import attention
from logpi.policies.base import PolicyOutput, Reference
from logpi.policies.causal_lm import CausalLM

PROMPTS = (torch.tensor([1, 2]), torch.tensor([2, 1, 1, 2, 2]))


class TinyLanguageModel(CausalLM):
    """A GPT-2 of one layer and width 8, weights from a fixed seed."""

    def __init__(self, has_values: bool = False, seed: int = 3):
        from transformers import GPT2Config, GPT2LMHeadModel

        attention.register()
        config: Any = GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=0.6,
            bos_token_id=None, eos_token_id=END,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module: Any = GPT2LMHeadModel(config).double()
        module.set_attn_implementation(attention.NAME)
        super().__init__(
            module, None, eos_token_ids=(END,), context_length=16, dtype=torch.float64, value_head=has_values
        )
        if self.value_head is not None:
            self.value_head.double()
        self.evaluated: Tensor | None = None

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        out = super().evaluate(actions, mask, truncated, inputs, reference, with_entropy)
        self.evaluated = out.log_probs
        return out

    def log_probs(self) -> Tensor:
        """Return log π of every action in every state, [prompts, prefixes, actions]: plain forwards of whole sequences
        with the attention that transformers brings, nothing of logpi's."""
        rows = []
        with attention.replaced_by("eager", self.module):
            for prompt in PROMPTS:
                for prefix in PREFIXES:
                    tokens = torch.cat([prompt, torch.tensor(prefix, dtype=torch.long)])
                    rows.append(self.module(input_ids=tokens[None]).logits[0, -1].log_softmax(-1))
        return torch.stack(rows).reshape(NUM_PROMPTS, len(PREFIXES), VOCABULARY)

    def inputs(self, prompt: int, states: Tensor) -> Tensor:
        """Return the prompt's token ids."""
        return PROMPTS[prompt]

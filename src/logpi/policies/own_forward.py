"""A causal LM that keeps its forward whole: state-space layers, ALiBi, attention that nothing can stand in for.

Its module learns, transformers' `generate` samples from it, and the two agree to rounding, not to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.device import products_in
from logpi.policies.attention import round_up
from logpi.policies.causal_lm import CausalLM
from logpi.policies.token_log_probs import ROW_MULTIPLE
from logpi.trajectory import pad


class OwnForward(CausalLM):
    """`CausalLM` without a sampler of its own; prompts run again with each completion."""

    def states(self, prompts: tuple[Tensor, ...], sequences: list[Tensor], places: list[Tensor]) -> Tensor:
        """As in `CausalLM`. Rows are padded on the right, which nothing before the padding sees."""
        rows = [torch.cat([prompt, sequence[:-1]]) for prompt, sequence in zip(prompts, sequences, strict=True)]
        tokens = pad(rows, round_up(max(map(len, rows)), ROW_MULTIPLE))
        with products_in(self.dtype):
            found = self.network.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        starts = [len(prompt) - 1 for prompt in prompts]
        return torch.cat([states[start + at] for states, start, at in zip(found, starts, places, strict=True)])

    def weights_changed(self) -> None:
        """Nothing is derived from the weights."""

    def _copy_of(self, module: Any) -> None:
        return None

    def _own_weights(self) -> None:
        self.fused = self.sampler_head = None
        self._owned = []

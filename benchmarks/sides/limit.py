"""The limit of sampling and of a training step: their matrix products alone, at their own shapes, on cold weights.

For work with "new_tokens" the products of sampling: each prompt's tokens once, then so many steps of all completions.
For any other the products of a training step (`step_config.py`): sampling, then forward, gradient of the input and
gradient of the weights for every token, prompts once a group; of the head for the completions' tokens only. Weights and
inputs are random; a product runs as torch's `linear`, turned where there are few rows, in bf16 on weights laid out for
the processor.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from precision import native
from texts import additions, prompts
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import serve

PROMPTS, GENERATIONS, LENGTH = 8, 8, 45  # of the step; completions of at most 64 tokens have 45 in the mean
MICRO_BATCH = 1024  # tokens
FEW = 128  # rows, up to which two threads share W xᵀ better than x Wᵀ

torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
padding = int(sys.argv[2]) if len(sys.argv) > 2 else 0


class Weight:
    """W [outputs, inputs], and the product x Wᵀ in the faster of the library's ways."""

    def __init__(self, outputs: int, inputs: int):
        self.dense = torch.randn(outputs, inputs, dtype=native())
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.dense, 64) if native() == torch.bfloat16 else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return torch.nn.functional.linear(x, self.dense) if len(x) > FEW else (self.dense @ x.T).T
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def learn(self, x: Tensor) -> None:
        """Do forward and backward: y, ∂x = ∂y W, ∂W = ∂yᵀ x."""
        y = self(x)
        y @ self.dense
        y.T @ x


def weights_of(model: str) -> tuple[list[Weight], Weight]:
    """Return the products of all layers in order, each layer with its own weights, and the head."""
    shape: Any = AutoConfig.from_pretrained(model)
    width, inner = shape.hidden_size, shape.intermediate_size
    each = getattr(shape, "head_dim", None) or width // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * each, shape.num_key_value_heads * each
    sizes = [(queries + 2 * keys, width), (width, queries), (2 * inner, width), (width, inner)]
    layers = [Weight(*size) for _ in range(shape.num_hidden_layers) for size in sizes]
    return layers, Weight(shape.vocab_size, width)


trunk, head = weights_of(sys.argv[1])
inputs = {}


def rows(number: int, width: int) -> Tensor:
    """Return a matrix of so many rows, made once."""
    if (number, width) not in inputs:
        inputs[number, width] = torch.randn(number, width, dtype=native())
    return inputs[number, width]


def run(number: int, scored: int) -> None:
    """Do the products of `number` tokens in the trunk and of `scored` of them in the head."""
    for weight in trunk:
        weight(rows(number, weight.dense.shape[1]))
    head(rows(scored, head.dense.shape[1]))


def sample(lengths: list[int], generations: int, steps: int) -> None:
    """Do the products of prompts of these lengths, packed, and of `steps` tokens of each of their completions."""
    run(sum(lengths), len(lengths))
    for _ in range(steps):
        run(len(lengths) * generations, len(lengths) * generations)


def learn(number: int, scored: int) -> None:
    """Do the products of a gradient over `number` tokens, `scored` of them in the head, micro-batch by micro-batch."""
    for start in range(0, number, MICRO_BATCH):
        for weight in trunk:
            weight.learn(rows(min(MICRO_BATCH, number - start), weight.dense.shape[1]))
    for start in range(0, scored, MICRO_BATCH):
        head.learn(rows(min(MICRO_BATCH, scored - start), head.dense.shape[1]))


def asked_in_chat() -> list[int]:
    """Return the lengths in tokens of the step's prompts."""
    chats = [chat for chat, _ in additions(PROMPTS, padding)]
    return [
        len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        for chat in chats
    ]


@torch.inference_mode()
def work(asked: dict[str, Any]) -> dict[str, Any]:
    if "prompts" in asked:
        lengths = [len(ids) for ids in prompts(tokenizer, asked["prompts"])]
        generations, steps, learns = asked["generations"], asked["new_tokens"], False
    else:
        lengths, generations, steps, learns = asked_in_chat(), GENERATIONS, LENGTH, True
    tokens = len(lengths) * generations * steps
    start = time.perf_counter()
    sample(lengths, generations, steps)
    parts = {"sample": time.perf_counter() - start}
    if learns:
        learn(sum(lengths) + tokens, tokens)
        parts["gradient"] = time.perf_counter() - start - parts["sample"]
    return {"seconds": sum(parts.values()), "tokens": tokens, "parts": parts}


serve(work)

"""A Hugging Face causal LM as a policy: prompts in, log-probs of completion tokens out.

Forwards run in eval mode, always: a policy with dropout would be another one at each call. The prompt of a group runs
once; its keys and values serve all its completions, in sampling and, under autograd, in learning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from logpi.device import products_in
from logpi.policies.adapters import (
    add_lora,
    base_of,
    is_adapted,
    merged_weight,
    product_layers,
    run_merged,
    without_lora,
)
from logpi.policies.attention import KEY_MULTIPLE, KeyValues, PackedKeyValues, round_up
from logpi.policies.base import PolicyOutput, Reference, scatter
from logpi.policies.dropout import Dropout
from logpi.policies.fused import Drop, FusedTrunk, keep
from logpi.policies.packing import Packing
from logpi.policies.products import Product
from logpi.policies.token_log_probs import PLAIN, Head, Transform, pad_rows, token_log_probs
from logpi.policies.turns import unrolled

PROMPT_TOKENS = 2048  # of prompts that run at once: what is between layers stays small


class CausalLM:
    """π(token | prompt, tokens before) = softmax(logits / temperature) over the tokens that `transform` keeps.

    `module` holds the fp32 (or float64) weights that the learner writes. `sampler` is the same network for sampling: it
    shares the weights, except the matrices that the products' dtype or a LoRA adapter make different, which are cast
    or merged once per update (`weights_changed`).
    """

    def __init__(
        self,
        module: Any,  # a PreTrainedModel; torch types attributes of modules as tensors, so: Any
        tokenizer: Any,
        *,
        eos_token_ids: tuple[int, ...],
        context_length: int,
        dtype: torch.dtype = torch.float32,
        transform: Transform = PLAIN,
        lora: dict[str, Any] | None = None,
        value_head: bool = False,
    ):
        self.tokenizer, self.eos_token_ids, self.context_length = tokenizer, eos_token_ids, context_length
        self.dtype, self.transform = dtype, transform
        self.has_values = value_head
        self.module: Any = module.eval()
        self.sampler: Any = self._copy_of(module)
        self.is_lora = lora is not None
        if lora is not None:
            self.module = add_lora(module, lora)
        width = module.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(width, 1) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self._own_weights()

    # --- the network -------------------------------------------------------------------------------------------

    @property
    def network(self) -> Any:
        """The Hugging Face module that learning runs through (inside peft's wrapper, when there is one)."""
        return self.module.get_base_model() if self.is_lora else self.module

    def hidden_states(
        self, network: Any, tokens: Tensor, positions: Tensor, attend: Tensor, cache: KeyValues
    ) -> Tensor:
        """Run the trunk: tokens, positions [rows, time], attend [rows or 1, 1, time, keys] -> [rows, time, width]."""
        if self.fused is not None and network is self.sampler:
            return self.fused.sample(tokens, positions, attend, cache)
        with products_in(self.dtype):
            return network.base_model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=attend,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

    def packed_states(
        self, tokens: Tensor, packing: Packing, cache: PackedKeyValues | None = None, drop: Drop = keep
    ) -> Tensor:
        """Run the learner's trunk on tokens [places] -> [places, width]; with a cache, the sampler's. A fused one can
        drop."""
        if self.fused is not None:
            return self.fused.packed(tokens, packing, cache, drop)
        network = self.network if cache is None else self.sampler
        with products_in(self.dtype):
            return network.base_model(
                input_ids=tokens[None],
                position_ids=packing.positions[None],
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
                past_key_values=cache,
                use_cache=cache is not None,
                packing=packing,
            ).last_hidden_state[0]

    def prompt_pass(self, prompts: list[Tensor]) -> tuple[Tensor, KeyValues]:
        """Run prompts once, PROMPT_TOKENS or one prompt at a time: the state after each one's last token [prompts,
        width], the cache."""
        num_keys = round_up(max(map(len, prompts)), KEY_MULTIPLE)
        states, caches = [], []
        for few in _pieces(prompts, PROMPT_TOKENS):
            lengths = torch.tensor([len(prompt) for prompt in few])
            packing = Packing.of(lengths.tolist(), [], [], [])
            tokens = torch.zeros_like(packing.positions)
            tokens[: int(lengths.sum())] = torch.cat(few)
            packed = PackedKeyValues()
            states.append(self.packed_states(tokens, packing, packed)[lengths.cumsum(0) - 1])
            caches.append(packed.lay_out(lengths, num_keys))
        return torch.cat(states), KeyValues.joined(caches)

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token for sampling, hidden [rows, width] -> [rows, vocabulary]."""
        return self.sampler_head(pad_rows(hidden))[: len(hidden)]

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Return weight [vocabulary, width] and bias of the layer that turns states into logits."""
        layer = self.network.get_output_embeddings()
        return layer.weight, layer.bias

    def _own_head(self) -> Head | None:
        """Return that layer in bf16, where the sampler holds it."""
        head = self.sampler_head
        if head is None or head.packed is None or is_adapted(head.sources[0]):
            return None
        return Head(head.layers[0].weight, head.bias, head.forward, adds_in_place=True)

    # --- what the learner asks ---------------------------------------------------------------------------------

    def states(
        self,
        prompts: tuple[Tensor, ...],
        sequences: list[Tensor],
        places: list[Tensor],
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Return the state that each action is chosen in, rows one after the other [actions, width]; of each row: its
        prompt, what comes after it, where in that its actions stand."""
        distinct, prompt_of_row = _distinct(prompts)
        packing = Packing.of([len(p) for p in distinct], prompt_of_row, places, [len(s) for s in sequences])
        tokens = torch.zeros_like(packing.positions)
        real = torch.cat([*distinct, *(sequence[:-1] for sequence in sequences)])
        tokens[: len(real)] = real
        drop = keep
        if dropout is not None:
            assert self.fused is not None  # `dropout_of` has seen to it
            rows = [torch.cat([distinct[i], row[:-1]]) for i, row in zip(prompt_of_row, sequences, strict=True)]
            counts = [*map(len, distinct), *(len(row) - 1 for row in sequences)]
            shape = len(tokens), self.fused.num_sites, self.fused.embedding.weight.shape[1]
            drop = dropout.of([*distinct, *rows], counts, shape)
        return self.packed_states(tokens, packing, drop=drop).index_select(0, packing.states)

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
        dropout: Dropout | None = None,
    ) -> PolicyOutput:
        """Score completions; `inputs` are the prompts' token ids, one tensor a row, and what was said between the
        actions of an episode of several turns. A cut completion is an outcome of its own, scored as it is: its final
        value is 0."""
        options = {} if dropout is None else {"dropout": dropout}  # which a forward of one's own has not
        states = self.states(*unrolled(actions, mask, inputs), **options)
        against = None if reference is None else (reference.states[mask], *reference.policy.head())
        log_probs, entropies, kl = token_log_probs(
            states, *self.head(), actions[mask], self.transform, self.dtype, against, self._own_head(), with_entropy
        )
        values = None if self.value_head is None else scatter(self.value_head(states)[:, 0].float(), mask)
        return PolicyOutput(
            scatter(log_probs, mask),
            None if entropies is None else scatter(entropies, mask),
            values,
            None if values is None else torch.zeros(len(actions)),
            None if kl is None else scatter(kl, mask),
            states,
        )

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if self.value_head is not None:
            named |= {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        return named

    def frozen_copy(self) -> CausalLM:
        """Copy the weights that updates change; with LoRA at its start that is none: the base is shared."""
        copied = copy.copy(self)
        copied.value_head, copied.has_values = None, False
        if self.is_lora:
            copied.module, copied.is_lora = _base_network(self), False
        else:
            copied.module = copy.deepcopy(self.module).requires_grad_(False)
        copied.sampler, copied.fused, copied.sampler_head = copied.module, None, None
        copied._owned = []
        return copied

    # --- sampling weights --------------------------------------------------------------------------------------

    def _copy_of(self, module: Any) -> Any:
        """Return the network for sampling, which shares all weights so far."""
        return copy.deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})

    def _own_weights(self) -> None:
        """Give the sampler weights of its own where they differ from the learner's: cast matrices, merged adapters."""
        self.fused: FusedTrunk | None = None
        self._owned: list[tuple[nn.Module, nn.Module]] = []  # (sampler's layer, learner's layer)
        for name, layer in product_layers(self.sampler):
            source = self.network.get_submodule(name)
            if self.dtype == torch.bfloat16 or is_adapted(source):
                self._owned.append((layer, source))
        for layer, source in self._owned:
            for name, parameter in list(base_of(source).named_parameters(recurse=False)):
                dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else parameter.dtype
                own = nn.Parameter(parameter.detach().to(dtype, copy=True), requires_grad=False)
                setattr(layer, name, own)
        for layer, source in self._owned:
            if is_adapted(source):
                run_merged(source, layer)
        self.sampler_head: Any = Product([self.sampler.get_output_embeddings()], [self.network.get_output_embeddings()])
        self.weights_changed()
        self.fused = FusedTrunk.of(self)
        if self.fused is not None:  # it holds its products' weights where they are not the learner's
            products = [product for product in self.fused.products() if product.packed is not None]
            held = {id(layer) for product in products for layer in product.layers}
            self._owned = [both for both in self._owned if id(both[0]) not in held]

    @torch.no_grad()
    def weights_changed(self) -> None:
        """Cast or merge the learner's weights into the sampler's own, once per update."""
        for layer, source in self._owned:
            for name, parameter in base_of(source).named_parameters(recurse=False):
                getattr(layer, name).copy_(merged_weight(source) if name == "weight" else parameter)
        self.sampler_head.refresh()
        if self.fused is not None:
            self.fused.refresh()


def _pieces(prompts: list[Tensor], max_tokens: int) -> Iterator[list[Tensor]]:
    """Yield neighbours of at most so many tokens together, one prompt at least."""
    few: list[Tensor] = []
    for prompt in prompts:
        if few and sum(map(len, few)) + len(prompt) > max_tokens:
            yield few
            few = []
        few.append(prompt)
    yield few


def _distinct(inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[int]]:
    """Return the different prompts, and for each row the index of its own."""
    index: dict[tuple[int, ...], int] = {}
    rows = [index.setdefault(tuple(prompt.tolist()), len(index)) for prompt in inputs]
    return [torch.tensor(tokens) for tokens in index], rows


def _base_network(policy: CausalLM) -> nn.Module:
    """Return the network without its adapter: a copy of the structure that shares the frozen base weights."""
    return without_lora(policy.module)

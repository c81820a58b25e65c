"""A Hugging Face encoder (BERT and its kin) as a policy: a sentence in, an action for each of its words at once.

π(actions | sentence) = Π_i π(action_i | sentence): given the sentence, the actions don't depend on one another. An
action is a word's label, of a tagger, or the token that stood where a masked one stands, of a masked language model.
Forwards run in eval mode, always. A sentence runs once for its group.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from logpi.device import products_in
from logpi.errors import InputError
from logpi.policies.base import PolicyOutput, Reference, scatter
from logpi.policies.packing import Packing
from logpi.policies.token_log_probs import PLAIN, Transform, next_logits, token_log_probs

TOKEN, TYPE, ASKED = 0, 1, 2  # columns of a sentence [tokens, 3]: ids, 1 where a word is marked, 1 where an action goes


class Encoder:
    """π(action | sentence) = softmax(head(state) / temperature) at each place that asks for one.

    `inputs` of a trajectory is its sentence, integers [tokens, 3]; its i-th action goes with the i-th place that asks.
    """

    has_values = False

    def __init__(
        self,
        network: Any,  # a PreTrainedModel; torch types attributes of modules as tensors, so: Any
        tokenizer: Any,
        *,
        labels: Sequence[str] = (),
        context_length: int,
        dtype: torch.dtype = torch.float32,
        transform: Transform = PLAIN,
    ):
        """`labels` are a tagger's actions, in the head's order; without them the actions are tokens."""
        self.network, self.tokenizer, self.labels = network.eval(), tokenizer, tuple(labels)
        self.context_length, self.dtype, self.transform = context_length, dtype, transform
        self.label_ids = {label: i for i, label in enumerate(self.labels)}

    @property
    def module(self) -> Any:
        """The network, by the name that every policy has for it."""
        return self.network

    # --- sentences ---------------------------------------------------------------------------------------------

    def sentence(self, words: Sequence[str], marked: int | None = None) -> Tensor:
        """Return words as a sentence that asks for an action at each word's first token. Raises InputError for more
        tokens than the network can read, and for a word that has none."""
        found = self.tokenizer([list(words)], is_split_into_words=True, verbose=False)
        word_of = found.word_ids(0)
        is_first = [w is not None and w != before for w, before in zip(word_of, [None, *word_of])]
        self.check_length(len(word_of), " ".join(words))
        if sum(is_first) != len(words):
            missing = sorted(set(range(len(words))) - set(word_of))
            raise InputError(f"word {missing[0]}, {words[missing[0]]!r:.40}, has no token; repair or remove the row")
        is_marked = [w is not None and w == marked for w in word_of]
        return torch.tensor([found["input_ids"][0], is_marked, is_first]).T.contiguous()

    def check_length(self, num_tokens: int, text: str) -> None:
        """Raise InputError where a sentence has more tokens than the network can read."""
        if num_tokens > self.context_length:
            raise InputError(
                f"{text!r:.60} has {num_tokens} tokens; the model's context is {self.context_length}; shorten or "
                "remove the row"
            )

    def states(self, sentences: Sequence[Tensor]) -> Tensor:
        """Run sentences side by side: the state that each action is chosen in, [actions, width]."""
        packing = Packing.of_sentences([len(sentence) for sentence in sentences])
        flat = torch.cat(list(sentences))
        padded = flat.new_zeros((len(packing.positions), flat.shape[1]))
        padded[: len(flat)] = flat
        marks = {"token_type_ids": padded[None, :, TYPE]} if flat[:, TYPE].any() else {}
        head: Any = self._head_layer()
        head.forward = _unchanged  # it comes later, in chunks, where log-probs are taken
        try:
            with products_in(self.dtype):
                states = self.network(
                    input_ids=padded[None, :, TOKEN],
                    position_ids=packing.positions[None],
                    attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
                    packing=packing,
                    **marks,
                ).logits[0]
        finally:
            del head.forward
        return states.index_select(0, flat[:, ASKED].nonzero()[:, 0])

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's product for sampling, [rows, width] -> [rows, actions]."""
        weight, bias = self.head()
        return next_logits(states, weight.to(self.dtype), None if bias is None else bias.to(self.dtype))[: len(states)]

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Return weight [actions, width] and bias of the layer that turns states into logits."""
        layer = self._head_layer()
        return layer.weight, layer.bias

    def _head_layer(self) -> nn.Linear:
        return self.network.classifier if self.labels else self.network.get_output_embeddings()

    # --- what the learner asks ---------------------------------------------------------------------------------

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        """Score actions; rows with the same sentence share its forward."""
        places: dict[bytes, int] = {}
        row_of = [places.setdefault(sentence.numpy().tobytes(), len(places)) for sentence in inputs]
        distinct = dict(zip(row_of, inputs, strict=True))
        sentences = [distinct[i] for i in range(len(places))]
        by_sentence = self.states(sentences).split([int(s[:, ASKED].sum()) for s in sentences])
        states = torch.cat([by_sentence[i] for i in row_of])
        against = None if reference is None else (reference.states[mask], *reference.policy.head())
        log_probs, entropies, kl = token_log_probs(
            states, *self.head(), actions[mask], self.transform, self.dtype, against, None, with_entropy
        )
        return PolicyOutput(
            scatter(log_probs, mask),
            None if entropies is None else scatter(entropies, mask),
            kl_exact=None if kl is None else scatter(kl, mask),
            states=states,
        )

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def frozen_copy(self) -> Encoder:
        copied = copy.copy(self)
        copied.network = copy.deepcopy(self.network).requires_grad_(False)
        return copied

    def weights_changed(self) -> None:
        """Nothing is derived from the weights."""


def _unchanged(states: Tensor) -> Tensor:
    return states

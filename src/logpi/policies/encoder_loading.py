"""From an encoder's files to a policy, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from logpi.device import products_in, resolve_dtype
from logpi.errors import InputError, did_you_mean
from logpi.policies import attention
from logpi.policies.encoder import Encoder
from logpi.policies.loading import context_length, load_config, load_tokenizer
from logpi.policies.model_folder import find
from logpi.policies.token_log_probs import PLAIN, Transform
from logpi.policies.untrained_encoder import name_labels
from logpi.randomness import Stream, library_draws


def load_encoder(
    model: str, labels: Sequence[str] = (), *, dtype: str = "auto", transform: Transform = PLAIN, seed: int = 0
) -> Encoder:
    """Load an encoder with fp32 weights (float64 when asked) and logpi's attention: a tagger where there are `labels`,
    else a masked language model. A tagger keeps the labels that it has; another encoder gets a new head for these, a
    function of the seed. No remote code is run. Raises InputError for what can't be loaded, or can't know a label."""
    from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a new head is no mishap here
    source = find(model, weights=True)
    tokenizer, config = load_tokenizer(source), load_config(source)
    is_tagger = str((config.architectures or [""])[0]).endswith("ForTokenClassification")
    if labels and is_tagger:
        known = [config.id2label[i] for i in range(len(config.id2label))]
        if unknown := [label for label in labels if label not in known]:
            raise InputError(
                f'model "{model}" has no label "{unknown[0]}" ({len(unknown)} of the task\'s {len(labels)} are missing)'
                f".{did_you_mean(unknown[0], known)} Begin with an encoder that is no tagger yet, or raise "
                "task.min_count"
            )
        labels = known
    elif labels:
        name_labels(config, labels)
    kind: Any = AutoModelForTokenClassification if labels else AutoModelForMaskedLM
    product_dtype = resolve_dtype(dtype)
    attention.register()
    try:
        with library_draws(seed, Stream.INITIALISATION):
            network = kind.from_pretrained(
                source.location,
                config=config,
                dtype=torch.float64 if product_dtype == torch.float64 else torch.float32,
                attn_implementation=attention.NAME,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()
        raise InputError(f'model "{model}" is no encoder that can be loaded: {what[0] if what else error!r}') from error
    options = {"context_length": context_length(config), "dtype": product_dtype, "transform": transform}
    policy = Encoder(network, tokenizer, labels=labels, **options)
    _check(policy, model)
    return policy


@torch.no_grad()
def _check(policy: Encoder, model: str) -> None:
    """Raise InputError for an encoder that can't mark a word, has no mask or no head that is known, or whose forward
    does more than logpi computes: our logits of a short sentence differ from its own."""
    network = policy.network
    if policy.labels and getattr(network.config, "type_vocab_size", 0) < 2:
        raise InputError(f'model "{model}" has one token type alone, so no word can be marked; pick a BERT with two')
    if not policy.labels and policy.tokenizer.mask_token_id is None:
        raise InputError(f'model "{model}": its tokenizer has no mask token; set mask_token')
    if policy.labels and not isinstance(getattr(network, "classifier", None), torch.nn.Linear):
        raise InputError(f'model "{model}": its head is no linear layer "classifier"; pick another encoder')
    tokens = torch.arange(min(16, policy.context_length)) % network.config.vocab_size
    with attention.replaced_by("eager", network), products_in(policy.dtype):
        theirs = network(input_ids=tokens[None]).logits[0]
    sentence = torch.stack([tokens, torch.zeros_like(tokens), torch.ones_like(tokens)], 1)
    ours = policy.logits(policy.states([sentence, sentence.flip(0)]))[: len(tokens)]  # beside another one
    difference = float((ours - theirs).abs().max())
    if not difference <= (0.5 if policy.dtype == torch.bfloat16 else 1e-3):
        raise InputError(
            f"model \"{model}\": logpi's logits differ from the model's own by {difference:.3g}; its forward does "
            "something that logpi does not compute (other positions, relative attention); pick another encoder"
        )

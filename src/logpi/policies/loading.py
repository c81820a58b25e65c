"""From a model's files to a causal-LM policy, checked."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch

from logpi.device import products_in, resolve_dtype
from logpi.errors import InputError
from logpi.policies import attention
from logpi.policies.causal_lm import CausalLM
from logpi.policies.model_folder import Source, find
from logpi.policies.own_forward import OwnForward
from logpi.policies.token_log_probs import PLAIN, Transform
from logpi.randomness import Stream, library_draws


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer. Raises InputError where there is none, or where it has neither EOS nor a way to stop."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f'model "{source.name}": no tokenizer could be loaded: {_first_line(error)}') from error


def load_config(source: Source) -> Any:
    """Load the model's configuration."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f'model "{source.name}" could not be loaded: {_first_line(error)}') from error


def why_own_forward(config: Any) -> str | None:
    """Return why logpi can't put its attention into a network of this configuration; None where it can."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or kind._supports_attention_backend:
        return None
    return (
        f"{kind.__name__} has no attention that can be replaced (state-space layers, ALiBi or code of its own), so "
        "transformers' generate samples: slower, and its log-probs are the learner's to rounding only"
    )


def eos_token_ids(source: Source, tokenizer: Any, config: Any) -> tuple[int, ...]:
    """Return every token that ends a completion: the tokenizer's, the generation config's and the model's."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(source.location).eos_token_id
    except OSError:
        generation = None
    found: list[int] = []
    for value in (tokenizer.eos_token_id, generation, config.eos_token_id):
        found += [] if value is None else [value] if isinstance(value, int) else list(value)
    if not found:
        raise InputError(
            f'model "{source.name}": neither tokenizer nor generation_config names an end-of-sequence token, so no '
            "completion could end; set eos_token in the tokenizer"
        )
    return tuple(dict.fromkeys(found))


def context_length(config: Any) -> int:
    """Return how many tokens prompt and completion may have together."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "sliding_window")]
    return min([limit for limit in limits if isinstance(limit, int) and limit > 0], default=2**31)


def load_causal_lm(
    model: str,
    *,
    dtype: str = "auto",
    transform: Transform = PLAIN,
    lora: dict[str, Any] | None = None,
    value_head: bool = False,
    seed: int = 0,
) -> CausalLM:
    """Load a causal LM with fp32 weights (float64 when asked) and logpi's attention. No remote code is run."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = find(model, weights=True)
    tokenizer, config = load_tokenizer(source), load_config(source)
    ends, kept = eos_token_ids(source, tokenizer, config), why_own_forward(config)
    product_dtype = resolve_dtype(dtype)
    attention.register()
    try:
        module = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=torch.float64 if product_dtype == torch.float64 else torch.float32,
            attn_implementation=None if kept else attention.NAME,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f'model "{model}" could not be loaded: {_first_line(error)}') from error
    with library_draws(seed, Stream.INITIALISATION):  # an adapter's first weights
        policy = (OwnForward if kept else CausalLM)(
            module,
            tokenizer,
            eos_token_ids=ends,
            context_length=context_length(config),
            dtype=product_dtype,
            transform=transform,
            lora=lora,
            value_head=value_head,
        )
    check_forward(policy, model)
    return policy


@torch.no_grad()
def check_forward(policy: CausalLM, model: str) -> None:
    """Compare our forward with the module's own logits on a short text: a model whose head or attention does more than
    logpi computes (soft-capping, logit scales, ALiBi) is refused instead of trained wrongly."""
    length = min(16, policy.context_length)
    tokens = torch.arange(length)[None] % policy.network.config.vocab_size
    wide = policy.dtype != torch.bfloat16
    with attention.replaced_by("eager", policy.network), products_in(policy.dtype):
        theirs = policy.network(input_ids=tokens).logits[0, :-1].to(torch.float64)
    theirs = torch.log_softmax(theirs, -1).gather(1, tokens[0, 1:, None])[:, 0]
    mask = torch.ones((1, length - 1), dtype=torch.bool)
    plain = copy.copy(policy)
    plain.transform = PLAIN
    ours = plain.evaluate(tokens[:, 1:], mask, torch.zeros(1, dtype=torch.bool), (tokens[0, :1],)).log_probs[0]
    difference = float((ours - theirs).abs().max())
    if not difference <= (0.5 if not wide else 1e-3):
        raise InputError(
            f"model \"{model}\": logpi's log-probs differ from the model's own by {difference:.3g}; its forward does "
            "something that logpi does not compute (soft-capping, logit scaling, ALiBi, …); pick another model"
        )


def weights_hash(policy: CausalLM) -> str:
    """Return the SHA-256 of the module's weights, by name: what a run record names its start by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.network.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""A new language model: a byte-level BPE tokenizer learnt from text, and a network that knows nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logpi.errors import InputError
from logpi.policies.embedded import cache_folder
from logpi.policies.loading import context_length, load_config
from logpi.policies.model_folder import TINY, find
from logpi.randomness import Stream, library_draws
from logpi.storage import new_folder

END = "<|end|>"  # of a document, and of each message
TINY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_CONTEXT = 16384
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_folder() -> Path:
    """Return the cache's folder of the model "tiny": bytes as tokens, a context that nothing is too long for."""
    folder = cache_folder() / TINY
    if not folder.exists():
        with new_folder(folder) as temporary:
            write_untrained(temporary, [], vocab_size=260, context=TINY_CONTEXT, shape=TINY_SHAPE, like=None, seed=0)
    return folder


def write_untrained(
    folder: Path,
    texts: Sequence[str],
    *,
    vocab_size: int,
    context: int,
    shape: dict[str, Any],
    like: str | None,
    seed: int,
) -> None:
    """Write tokenizer and network as a Hugging Face folder: a Llama of this shape, or of the configuration that the
    folder or hub id `like` has. Its first weights are a function of the seed."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = learn_tokenizer(texts, vocab_size)
    config = _llama(shape, context) if like is None else _configuration(like, context)
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
    config.pad_token_id = None  # a padding token's embedding is never trained, and padding is masked anyway
    with library_draws(seed, Stream.INITIALISATION):
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def learn_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer of at most `vocab_size` tokens: the most frequent pair becomes a token, again
    and again (Sennrich et al. 2016; over bytes, Radford et al. 2019), within a word or one Chinese character. It has a
    token for the end and one for each role of a chat, and a template that uses them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    characters = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")  # Chinese has no spaces between words
    backend.pre_tokenizer = pre_tokenizers.Sequence([characters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _llama(shape: dict[str, Any], context: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(max_position_embeddings=context, tie_word_embeddings=True, **shape)


def _configuration(like: str, context: int) -> Any:
    """Return the configuration of a folder or hub id. Raises InputError where a block is longer than its context."""
    config = load_config(find(like))
    if context > context_length(config):
        raise InputError(
            f'pretrain.block_size={context} is over the context of "{like}", {context_length(config)}; lower it'
        )
    return config

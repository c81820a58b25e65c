"""A new encoder: a byte-level BPE tokenizer of words learnt from text, and a network that knows nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logpi.errors import InputError
from logpi.policies.embedded import cache_folder
from logpi.policies.model_folder import TINY_ENCODER
from logpi.policies.untrained import TINY_SHAPE
from logpi.randomness import Stream, library_draws
from logpi.storage import new_folder

PAD, MASK = "<|pad|>", "<|mask|>"


def tiny_encoder_folder() -> Path:
    """Return the cache's folder of the model "tiny-encoder": bytes as tokens, no tagger yet."""
    folder = cache_folder() / TINY_ENCODER
    if not folder.exists():
        with new_folder(folder) as temporary:
            write_untrained_encoder(temporary, [], labels=(), vocab_size=258, context=1024, shape=TINY_SHAPE, seed=0)
    return folder


def write_untrained_encoder(
    folder: Path,
    texts: Sequence[str],
    *,
    labels: Sequence[str],
    vocab_size: int,
    context: int,
    shape: dict[str, Any],
    seed: int,
) -> None:
    """Write tokenizer and network as a Hugging Face folder: a BERT with rotary positions (transformers' NomicBert), a
    tagger where there are labels, else a masked language model. Its first weights are a function of the seed. Raises
    InputError where heads are to share keys and values."""
    from transformers import NomicBertConfig, NomicBertForMaskedLM, NomicBertForTokenClassification
    from transformers.utils import logging

    if shared := shape.get("num_key_value_heads"):
        raise InputError(f"shape.num_key_value_heads={shared}: an encoder's heads all have their own; leave it out")
    logging.disable_progress_bar()
    tokenizer = learn_word_tokenizer(texts, vocab_size)
    config = NomicBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=context, pad_token_id=tokenizer.pad_token_id, **shape
    )
    if labels:
        name_labels(config, labels)
    with library_draws(seed, Stream.INITIALISATION):
        network = NomicBertForTokenClassification(config) if labels else NomicBertForMaskedLM(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def name_labels(config: Any, labels: Sequence[str]) -> None:
    """Give a configuration the labels of its head, in order."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def learn_word_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer of at most `vocab_size` tokens. Words and marks of punctuation are split apart
    first, whether there is a space between them or not: text and lists of words come out alike."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, mask_token=MASK)

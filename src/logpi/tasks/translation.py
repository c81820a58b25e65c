"""Translation: a sentence in one language, what it says in another; scored against references by sacrebleu.

A completion counts only if it is in the target language (py3langid, offline): a source that is copied, or a good
sentence in another language, shares names, numbers and endings with a reference and would else be paid for them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from typing import Any

from logpi.errors import InputError, did_you_mean, missing_extra
from logpi.tasks.base import CorpusMetric, Problem, Task
from logpi.tasks.dataset import Row, Source, name_of, read_rows
from logpi.tasks.problems import Heldout, cell, chat, check_template, place_of, prompt_key, prompt_text, split_sources
from logpi.tasks.rewarding import Completion, as_reward, completion_text

# What a completion may be mistaken for: the identifier knows 140 languages, and takes a short sentence for a rare one.
COMMON = (
    "ar", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nl", "no", "pl",
    "pt", "ro", "ru", "sv", "tr", "uk", "vi", "zh",
)  # fmt: skip


def translation(
    data: Source,
    target: str,
    heldout: Heldout = 0.1,
    seed: int = 0,
    template: str = "{source}",
    reward: str = "mean",
) -> Task:
    """Return the task of rows {"source", "target"} (a .tsv has them without a header) or {"src", "refs": [..]};
    `target` is the language's code ("fr"), `heldout` a count, a fraction or another source.

    Each row is a problem; its references are those of all rows of its side with the same source. `reward` names one of
    REWARDS. The metrics are corpus BLEU, with sacrebleu's tokenizer for the language, and chrF2.
    """
    check_template(template, "source")
    if reward not in REWARDS:
        raise InputError(f'reward="{reward}": no such reward of translation.{did_you_mean(str(reward), REWARDS)}')
    _identifier(target)

    def read(source: Source) -> list[Problem]:
        name = name_of(source)
        pairs = [_pair(index, row, name) for index, row in enumerate(read_rows(source))]
        references: dict[str, dict[str, None]] = {}  # in their order, each once
        for sentence, given in pairs:
            references.setdefault(sentence, {}).update(dict.fromkeys(given))
        return [
            Problem(
                index,
                chat(template.format(source=sentence)),
                {"translation": given[0], "references": list(references[sentence]), "target_language": target},
            )
            for index, (sentence, given) in enumerate(pairs)
        ]

    train, held = split_sources(data, heldout, seed, read, prompt_key)
    return Task(
        "translation",
        train,
        held,
        rewards=[as_reward(REWARDS[reward])],
        metrics=[as_reward(REWARDS[reward]), as_reward(in_target_language)],
        corpus_metrics=[corpus_metric("bleu", _bleu(target)), corpus_metric("chrf2", _chrf())],
        examples=[(prompt_text(problem.prompt), problem.columns["translation"]) for problem in train[:8]],
        solution="translation",
    )


# --- rewards ------------------------------------------------------------------------------------------------------


def sentence_chrf(
    completions: Sequence[Completion],
    references: Sequence[list[str]],
    target_language: Sequence[str],
    partial: Sequence[bool] | None = None,
    **_: Any,
) -> list[float]:
    """Give chrF2 of each completion against its references (the best one's), in [0, 1]; 0 in another language. A few
    words are in no language for sure: what is only the beginning of a completion (`partial`) is scored in any."""
    return _gated(
        completions, references, target_language, partial, lambda text, refs, _: _chrf().sentence_score(text, refs)
    )


def sentence_bleu(
    completions: Sequence[Completion],
    references: Sequence[list[str]],
    target_language: Sequence[str],
    partial: Sequence[bool] | None = None,
    **_: Any,
) -> list[float]:
    """Give sentence BLEU, in [0, 1]: effective order, exponential smoothing; 0 in another language, as above."""
    return _gated(
        completions,
        references,
        target_language,
        partial,
        lambda text, refs, code: _bleu(code, True).sentence_score(text, refs),
    )


def sentence_mean(
    completions: Sequence[Completion],
    references: Sequence[list[str]],
    target_language: Sequence[str],
    partial: Sequence[bool] | None = None,
    **_: Any,
) -> list[float]:
    """Give the mean of `sentence_chrf` and `sentence_bleu`: chrF2 alone pays for recall, and so for more words."""
    both = (score(completions, references, target_language, partial) for score in (sentence_chrf, sentence_bleu))
    return [(chrf + bleu) / 2 for chrf, bleu in zip(*both)]


def in_target_language(
    completions: Sequence[Completion], references: Sequence[list[str]], target_language: Sequence[str], **_: Any
) -> list[float]:
    """Give 1 where the completion is a reference, or is in the target language."""
    return [
        float(_is_in_language(completion_text(text), refs, code))
        for text, refs, code in zip(completions, references, target_language)
    ]


REWARDS = {"chrf": sentence_chrf, "bleu": sentence_bleu, "mean": sentence_mean}


def _gated(
    completions: Sequence[Completion],
    references: Sequence[list[str]],
    target_language: Sequence[str],
    partial: Sequence[bool] | None,
    score: Callable[[str, list[str], str], Any],
) -> list[float]:
    """Return sacrebleu's score of each text, in [0, 1], where it is in the target language or only begun; else 0."""
    found = []
    for completion, refs, code, begun in zip(completions, references, target_language, partial or repeat(False)):
        text = completion_text(completion).strip()
        found.append(score(text, refs, code).score / 100 if begun or _is_in_language(text, refs, code) else 0.0)
    return [min(1.0, value) for value in found]  # an exact match comes as 100.00000000000004


def _is_in_language(text: str, references: list[str], code: str) -> bool:
    """Whether a text is a reference (a name alone is in every language), or is in this language."""
    return text.strip() in references or _identifier(code).classify(text)[0] == code


# --- the metrics --------------------------------------------------------------------------------------------------


def corpus_metric(name: str, metric: Any) -> CorpusMetric:
    """Return one of sacrebleu's metrics; its sums are sacrebleu's own statistics of a segment, its score theirs."""

    def statistics(completions: Sequence[Completion], references: Sequence[list[str]], **_: Any) -> list[list[float]]:
        texts = [completion_text(completion).strip() for completion in completions]
        streams = [
            [refs[i] if i < len(refs) else None for refs in references] for i in range(max(map(len, references)))
        ]
        return metric._extract_corpus_statistics(texts, streams)  # the interface of its metrics' own base class

    def score(sums: Sequence[float]) -> float:
        return metric._compute_score_from_stats([int(value) for value in sums]).score

    return CorpusMetric(name, statistics, score, lambda: str(metric.get_signature()))


@cache
def _bleu(target: str, effective_order: bool = False) -> Any:
    """Return sacrebleu's BLEU with its tokenizer for the language. Raises InputError where that needs a package."""
    sacrebleu = _require("sacrebleu")
    try:
        return sacrebleu.BLEU(trg_lang=target, effective_order=effective_order)
    except RuntimeError:
        raise InputError(
            f'target="{target}": its tokenizer needs more packages: pip install "sacrebleu[{target}]"'
        ) from None


@cache
def _chrf() -> Any:
    return _require("sacrebleu").CHRF()


@cache
def _identifier(target: str) -> Any:
    """Return what tells the target language from the common ones. Raises InputError for one that it does not know."""
    _require("py3langid")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if target not in (known := identifier.labels):
        raise InputError(f'target="{target}": no known language code.{did_you_mean(str(target), known)}')
    identifier.set_languages(sorted({*COMMON, target}))
    return identifier


def _require(package: str) -> Any:
    """Import a package of the extra. Raises InputError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise missing_extra(package, "rewards", "scoring translations") from None


def _pair(index: int, row: Row, name: str) -> tuple[str, list[str]]:
    """Return a row's source and references. Raises InputError with its place."""
    pair = "source" in row or "src" not in row
    source = cell(row, "source" if pair else "src", index, name, str).strip()
    given = [cell(row, "target", index, name, str)] if pair else cell(row, "refs", index, name, list)
    if not source or not given or not all(isinstance(text, str) and text.strip() for text in given):
        raise InputError(
            f"{place_of(row, index, name)}: source {source!r:.40}, references {given!r:.60}; both must be text, "
            "and not empty"
        )
    return source, [text.strip() for text in given]

"""Semantic role labelling: who did what to whom. A sentence and one of its predicates in, the arguments' spans out.

Two formulations of the same data. "tags": each word gets one of the task's labels, by a tagger. "spans": a language
model writes `ARG0 0-1, ARG1 3-5`, or `none`, after a prompt in which the words are numbered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from logpi.errors import InputError, did_you_mean
from logpi.tasks.base import CorpusMetric, Problem, Task
from logpi.tasks.dataset import Row, Source, place_of, read_rows
from logpi.tasks.problems import Heldout, chat, split_sources
from logpi.tasks.rewarding import Completion, as_reward, completion_text
from logpi.tasks.role_spans import OUTSIDE, Span, counts, f1, spans_of, tags_of

TAG = re.compile(r"O|[BI]-\S+")
WRITTEN = re.compile(r"(\S+) (\d{1,6})-(\d{1,6})")
NONE = "none"
Parse = Callable[[str, int], list[Span] | None]


def role_labelling(
    data: Source,
    heldout: Heldout = 0.1,
    seed: int = 0,
    form: str = "tags",
    rolesets: Source | None = None,
    min_count: int = 20,
) -> Task:
    """Return the task of rows {"tokens": [word, ..], "props": [{"predicate": index, "roleset": name, "args": [[label,
    start, end], ..]}, ..]}, `end` exclusive: a problem for each proposition, all of a sentence on one side.

    `form` is "tags" or "spans". Tags are those of labels that the training side has `min_count` times: others are too
    rare to learn, and count as missed. `rolesets`, rows {"id", "roles": [{"arg", "descr"}, ..]}, tell a language model
    what a roleset's roles mean. The reward is the F1 of a proposition's arguments, 0 where they can't be read.
    """
    if form not in FORMS:
        raise InputError(f'form="{form}": no such form of role_labelling.{did_you_mean(str(form), FORMS)}')
    meanings = {} if rolesets is None else _meanings(rolesets)
    train, held = split_sources(data, heldout, seed, partial(_propositions, meanings=meanings), _sentence)
    labels = _labels(train, min_count)
    parse = FORMS[form]
    return Task(
        "role_labelling",
        *([_with_solution(problem, form, labels) for problem in side] for side in (train, held)),
        rewards=[as_reward(REWARDS[form])],
        metrics=[as_reward(REWARDS[form])],
        corpus_metrics=[
            CorpusMetric(
                "f1",
                partial(statistics, parse=parse),
                lambda sums: 100 * f1(*sums),
                lambda: "labelled arguments, CoNLL-2005, micro",
            )
        ],
        solution="solution",
        labels=labels if form == "tags" else (),
    )


# --- rewards and metric -------------------------------------------------------------------------------------------


def read_tags(text: str, num_words: int) -> list[Span] | None:
    """Return the spans of tags, one a word, with spaces between; None where they are none."""
    tags = text.split()
    return spans_of(tags) if len(tags) == num_words and all(map(TAG.fullmatch, tags)) else None


def read_spans(text: str, num_words: int) -> list[Span] | None:
    """Return the spans of `LABEL first-last, ..` or `none`; None for other text, and for spans that overlap or lie
    outside of the sentence."""
    if text.strip() == NONE:
        return []
    found = [WRITTEN.fullmatch(part.strip()) for part in text.split(",")]
    spans = sorted((Span(m[1], int(m[2]), int(m[3]) + 1) for m in found if m), key=lambda span: span.start)
    ends = [0, *(span.end for span in spans)]
    is_sound = len(spans) == len(found) and all(
        end <= span.start < span.end <= num_words for end, span in zip(ends, spans)
    )
    return spans if is_sound else None


def tagged_f1(completions: Sequence[Completion], words: Sequence[list], spans: Sequence[list], **_: Any) -> list[float]:
    """Give the F1 of each completion's arguments, tags; 0 where they can't be read."""
    return [f1(*row) if row else 0.0 for row in _counts(completions, words, spans, read_tags)]


def written_f1(
    completions: Sequence[Completion], words: Sequence[list], spans: Sequence[list], **_: Any
) -> list[float]:
    """Give the F1 of each completion's arguments, written spans; 0 where they can't be read."""
    return [f1(*row) if row else 0.0 for row in _counts(completions, words, spans, read_spans)]


def statistics(
    completions: Sequence[Completion], words: Sequence[list], spans: Sequence[list], parse: Parse, **_: Any
) -> list[tuple[int, int, int]]:
    """Return the numbers of arguments (right, predicted, gold) of each proposition; unreadable text predicts none."""
    found = _counts(completions, words, spans, parse)
    return [row or counts([], _spans(gold)) for row, gold in zip(found, spans)]


FORMS: dict[str, Parse] = {"tags": read_tags, "spans": read_spans}
REWARDS = {"tags": tagged_f1, "spans": written_f1}


def _counts(
    completions: Sequence[Completion], words: Sequence[list], spans: Sequence[list], parse: Parse
) -> list[tuple[int, int, int] | None]:
    found = [parse(completion_text(c), len(sentence)) for c, sentence in zip(completions, words)]
    return [None if given is None else counts(given, _spans(gold)) for given, gold in zip(found, spans)]


def _spans(rows: Sequence[Sequence[Any]]) -> list[Span]:
    return [Span(*row) for row in rows]


# --- problems -----------------------------------------------------------------------------------------------------


def _propositions(source: Source, meanings: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each proposition of a source. Raises InputError with file and line."""
    found: list[Problem] = []
    for index, row in enumerate(read_rows(source)):
        try:
            words = _words(row)
            for number, prop in enumerate(_column(row, "props", list)):
                found.append(_proposition(len(found), words, prop, f"proposition {number}", meanings, row.get("id")))
        except InputError as error:
            raise InputError(f"{place_of(source, index)}: {error}") from None
    return found


def _words(row: Row) -> list[str]:
    words = _column(row, "tokens", list)
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(f'"tokens" is {words!r:.60}; it must be a list of words, none of them empty')
    return words


def _proposition(
    uid: int, words: list[str], prop: Any, what: str, meanings: Mapping[str, str], sentence: Any
) -> Problem:
    """Return the problem of one predicate of a sentence. Raises InputError for spans that can't be its arguments."""
    if not isinstance(prop, Mapping):
        raise InputError(f"{what} is {prop!r:.60}; it must be an object")
    predicate, roleset = _column(prop, "predicate", int, what), _column(prop, "roleset", str, what)
    if not 0 <= predicate < len(words):
        raise InputError(f"{what}: the predicate is word {predicate} of {len(words)}")
    spans: list[Span] = []
    for given in _column(prop, "args", list, what):
        if not (isinstance(given, list | tuple) and [type(part) for part in given] == [str, int, int]):
            raise InputError(f"{what}: argument {given!r:.60}; it must be [label, start, end]")
        span = Span(*given)
        if not 0 <= span.start < span.end <= len(words):
            raise InputError(f"{what}: {span.label} is words {span.start} to {span.end} of {len(words)}")
        if not re.fullmatch(r"[^\s,]+", span.label):
            raise InputError(f"{what}: label {span.label!r:.40}; it must be text without spaces and commas")
        spans.append(span)
    spans.sort(key=lambda span: span.start)
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise InputError(f"{what}: {one.label} and {other.label} overlap at word {other.start}")
    numbered = " ".join(f"{number}:{word}" for number, word in enumerate(words))
    roles = meanings.get(roleset, roleset)
    columns = {"words": words, "marked": predicate, "spans": [list(span) for span in spans]}
    columns |= {"asked": f"{numbered}\n{predicate}:{words[predicate]} {roles}", "sentence": sentence or numbered}
    return Problem(uid, " ".join(words), columns)


def _with_solution(problem: Problem, form: str, labels: Sequence[str]) -> Problem:
    """Return the problem with what is to be imitated, and the prompt of its form."""
    columns = dict(problem.columns)
    asked, spans, words = columns.pop("asked"), _spans(columns["spans"]), columns["words"]
    if form == "tags":
        tags = [tag if tag in labels else OUTSIDE for tag in tags_of(spans, len(words))]
        return Problem(problem.uid, problem.prompt, columns | {"solution": " ".join(tags)})
    written = ", ".join(f"{label} {start}-{end - 1}" for label, start, end in spans)
    return Problem(problem.uid, chat(asked), columns | {"solution": written or NONE})


def _sentence(problem: Problem) -> str:
    return str(problem.columns["sentence"])


def _meanings(source: Source) -> dict[str, str]:
    """Return each roleset's name with what its roles mean, as a prompt says it."""
    found = {}
    for index, row in enumerate(read_rows(source)):
        try:
            roles = [
                f"{_column(role, 'arg', str)}={_column(role, 'descr', str)}" for role in _column(row, "roles", list)
            ]
            found[_column(row, "id", str)] = " ".join([row["id"], "; ".join(roles)]).strip()
        except InputError as error:
            raise InputError(f"{place_of(source, index)}: {error}") from None
    return found


def _column(row: Any, column: str, kind: Any, what: str = "the row") -> Any:
    """Return a value of a row. Raises InputError where it is missing, or of another type."""
    if not isinstance(row, Mapping) or column not in row:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)[:40]
        raise InputError(f'{what} has no "{column}" (it has: {has})')
    if type(row[column]) is not kind:
        raise InputError(f'{what}: "{column}" is {row[column]!r:.60}; it must be {kind.__name__}')
    return row[column]


def _labels(problems: Sequence[Problem], min_count: int) -> tuple[str, ...]:
    """Return O, and B- and I- of each label that is frequent enough, the most frequent first."""
    seen = Counter(label for problem in problems for label, _, _ in problem.columns["spans"])
    kept = sorted((label for label, count in seen.items() if count >= min_count), key=lambda name: (-seen[name], name))
    return (OUTSIDE, *(f"{kind}-{label}" for label in kept for kind in "BI"))

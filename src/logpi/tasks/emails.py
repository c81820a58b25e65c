"""E-mails that state given facts: who writes to whom, about what, and what must be said, in sentences.

A fact counts where it stands in a sentence of the body. A list of them, the prompt copied, or a sentence that is little
more than facts is worth nothing, so that the policy has to write.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logpi.errors import InputError
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source
from logpi.tasks.diversity import distinct
from logpi.tasks.problems import Heldout, cell, chat, check_template, load_split, prompt_text
from logpi.tasks.rewarding import Completion, as_reward, completion_text

TEMPLATE = "Write a short e-mail from {sender} to {recipient} about {occasion}. It must say:\n{facts}"
SHOWN = {
    "sender": "Ruth Lang",
    "recipient": "Peter Moss",
    "occasion": "a lost parcel",
    "facts": {"item": "the blue lamp", "day": "9 May", "amount": "35 euros"},
}  # a row, and an e-mail for it, that every prompt begins with
SHOWN_EMAIL = (
    "Dear Peter,\n\nI am sorry to tell you that the blue lamp has not arrived. It was sent to you on 9 May, and I can "
    "not find it anywhere. We will pay you back the 35 euros this week.\n\nBest regards,\nRuth Lang"
)
NAMES = ("sender", "recipient", "occasion")
WORDS_ALLOWED = (25, 90)
OTHER_WORDS = 2  # that a sentence needs for each fact in it,
LEAST_OTHER_WORDS = 4  # and in all
GREETING = re.compile(r"(dear|hello|hi|good (morning|afternoon|evening))\b", re.IGNORECASE)
CLOSING = re.compile(
    r"((best|kind|warm|with (best|kind|warm)) (regards|wishes)|regards|sincerely|yours|best|thank(s| you)|cheers)\b",
    re.IGNORECASE,
)
LISTED = re.compile(r"\s*([-*•]|\d+[.)]|[^\W\d]+( [^\W\d]+){0,2}\s*:\s*\S)")  # a bullet, a number, "place: room 3"
SUBJECT = re.compile(r"\s*subject\s*:", re.IGNORECASE)
SENTENCE = re.compile(r"[^.!?]+[.!?]")
INVENTED = re.compile(
    r"\[[^\]]*\]|\d+|\b(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|march|april|june|july"
    r"|august|september|october|november|december)\b"
)  # numbers, days, months, and places left to be filled in; "may" is also a verb


def emails(
    data: Source | None = None,
    heldout: Heldout = 100,
    seed: int = 0,
    num_problems: int = 2000,
    template: str = TEMPLATE,
) -> Task:
    """Return the task of e-mails from rows {"sender", "recipient", "occasion", "facts": {label: value}}; without `data`
    `num_problems` rows are made up, each a function of seed and index.

    Held-out problems are completed by draws; the score is the share of e-mails that lack nothing (`complete`).
    """
    check_template(template, "sender", "recipient", "occasion", "facts")
    if isinstance(num_problems, bool) or not isinstance(num_problems, int) or num_problems < 2:
        raise InputError(f"num_problems={num_problems!r}: must be an integer from 2")

    def to_problem(index: int, row: Row, source_name: str) -> Problem:
        names = {name: cell(row, name, index, source_name, str).strip() for name in NAMES}
        facts = cell(row, "facts", index, source_name, dict)
        texts = [*names.values(), *facts.values()]
        if not facts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(
                f"{source_name}: row {index}: {row!r:.80}; names, occasion and facts must be text, not empty"
            )
        prompt = [*shown, *chat(_asked(template, row))]
        return Problem(index, prompt, {**names, "facts": [value.strip() for value in facts.values()]})

    shown = [*chat(_asked(template, SHOWN)), {"role": "assistant", "content": SHOWN_EMAIL}]
    rows = [made_up(seed, index) for index in range(num_problems)] if data is None else data
    train, held = load_split(rows, heldout, seed, to_problem)
    return Task(
        "emails",
        train,
        held,
        rewards=[as_reward(email)],
        metrics=[as_reward(f) for f in (complete, email, facts_stated, parts_present, nothing_invented)],
        corpus_metrics=[distinct(1), distinct(2)],
        score="complete",
        watched=("nothing_invented", "distinct_2"),
        draws=True,
    )


def _asked(template: str, row: Mapping[str, Any]) -> str:
    """Return what is asked for a row."""
    facts = "\n".join(f"- {label}: {value}" for label, value in row["facts"].items())
    return template.format(**{name: row[name] for name in NAMES}, facts=facts)


# --- what is in an e-mail -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Email:
    """A completion, read as an e-mail from `sender` to `recipient` that must state `facts`."""

    text: str
    sender: str
    recipient: str
    facts: Sequence[str]

    @cached_property
    def lines(self) -> list[str]:
        """Its lines but a subject and empty ones."""
        return [line.strip() for line in self.text.splitlines() if line.strip() and not SUBJECT.match(line)]

    @cached_property
    def greeting(self) -> bool:
        """Whether it begins with a greeting to the recipient, by one of the names."""
        first = self.lines[0] if self.lines else ""
        return bool(GREETING.match(first)) and any(_has(first, name) for name in self.recipient.split())

    @cached_property
    def closing(self) -> int | None:
        """The index of the line that begins the closing: the last one that greets, the sender's name in it or in the
        next line, and nothing behind."""
        for index in reversed(range(max(1, len(self.lines) - 3), len(self.lines))):
            end = self.lines[index:]
            if CLOSING.match(end[0]) and len(end) <= 3 and _has(" ".join(end), self.sender.split()[0]):
                return index
        return None

    @cached_property
    def body(self) -> list[str]:
        """The lines between greeting and closing; what follows a greeting's comma in its line belongs to them."""
        lines = self.lines[: self.closing]
        if not self.greeting:
            return lines
        return [rest for rest in (lines[0].partition(",")[2].strip(), *lines[1:]) if rest]

    @cached_property
    def listed(self) -> int:
        """How many lines of the body are items of a list."""
        return sum(bool(LISTED.match(line)) for line in self.body)

    @cached_property
    def sentences(self) -> list[str]:
        """The body's sentences, those that say more than facts."""
        prose = " ".join(line for line in self.body if not LISTED.match(line))
        return [found for found in SENTENCE.findall(prose) if self._says_more(found)]

    def _says_more(self, sentence: str) -> bool:
        stated = [fact for fact in self.facts if _has(sentence, fact)]
        others = len(sentence.split()) - sum(len(fact.split()) for fact in stated)
        return others >= max(LEAST_OTHER_WORDS, OTHER_WORDS * len(stated))

    @cached_property
    def stated(self) -> float:
        """The share of the facts that a sentence states."""
        return sum(any(_has(sentence, fact) for sentence in self.sentences) for fact in self.facts) / len(self.facts)

    @cached_property
    def parts(self) -> float:
        """The share of greeting, body and closing that is there."""
        return (self.greeting + bool(self.sentences) + (self.closing is not None)) / 3

    @cached_property
    def length(self) -> float:
        """1 within WORDS_ALLOWED, less the further the number of words is outside."""
        words, (low, high) = len(self.text.split()), WORDS_ALLOWED
        return min(1.0, words / low, high / max(1, words))

    @cached_property
    def freshness(self) -> float:
        """The share of its sentences that are no repetition."""
        said = [" ".join(sentence.lower().split()) for sentence in self.sentences]
        return len(set(said)) / len(said) if said else 0.0


def _has(text: str, phrase: str) -> bool:
    """Whether the text holds the phrase, as whole words, in whatever case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


# --- rewards ------------------------------------------------------------------------------------------------------


def email(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Give (facts stated + parts present)/2 · length · freshness, in [0, 1]; half of it where the body has a list."""
    return [
        (e.stated + e.parts) / 2 * e.length * e.freshness * (0.5 if e.listed else 1.0)
        for e in _read(completions, columns)
    ]


def complete(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Give 1 where every fact and part is there, the length is right, nothing is said twice and nothing is a list."""
    return [float(value == 1.0) for value in email(completions, **columns)]


def facts_stated(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Give the share of the facts that a sentence states."""
    return [e.stated for e in _read(completions, columns)]


def parts_present(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Give the share of greeting, body and closing that is there."""
    return [e.parts for e in _read(completions, columns)]


def nothing_invented(completions: Sequence[Completion], prompts: Sequence[Any], **_: Any) -> list[float]:
    """Give 1 where no number, weekday, month or placeholder ("[Your Name]") is in the text but not in the prompt. It is
    the second judge: no reward pays for it."""
    asked = [set(INVENTED.findall(prompt_text(prompt).lower())) for prompt in prompts]
    found = [set(INVENTED.findall(completion_text(completion).lower())) for completion in completions]
    return [float(new <= known) for new, known in zip(found, asked)]


def _read(completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Email]:
    given = zip(completions, columns["sender"], columns["recipient"], columns["facts"])
    return [Email(completion_text(text), sender, recipient, facts) for text, sender, recipient, facts in given]


# --- made-up rows -------------------------------------------------------------------------------------------------

FIRST = [
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas", "Kate", "Liam", "Maria",
    "Noah", "Olga", "Paul", "Rita", "Simon", "Tara", "Victor",
]  # fmt: skip
LAST = [
    "Adler", "Brook", "Castro", "Dunn", "Egan", "Fischer", "Grant", "Hale", "Ito", "Jensen", "Klein", "Lopez", "Moreau",
    "Novak", "Owens", "Patel", "Quinn", "Rossi", "Silva", "Weber",
]  # fmt: skip
MONTHS = ["January", "February", "March", "April", "June", "July", "August", "September", "October", "November"]
PLACES = [
    "the town hall", "the north gate", "the main library", "the harbour office", "the old station", "the garden room",
]  # fmt: skip
ITEMS = [
    "the garden chairs", "the new printer", "the school books", "the kitchen tiles", "the winter coats",
    "the spare keys",
]  # fmt: skip
TOPICS = [
    "the summer party", "the new website", "the budget", "the roof repair", "the training day", "the photo exhibition",
]  # fmt: skip
OCCASIONS = {
    "a meeting": ("topic", "day", "time", "place"),
    "a delivery": ("item", "day", "place"),
    "a bill": ("item", "amount", "day"),
    "a change of plan": ("topic", "day", "time"),
    "a visit": ("day", "time", "place"),
}


def made_up(seed: int, index: int) -> Row:
    """Return the index-th row of a seed."""
    draw = random.Random(f"{seed} {index}")
    sender, recipient = draw.sample([f"{first} {last}" for first in FIRST for last in LAST], 2)
    occasion = draw.choice(sorted(OCCASIONS))
    values = {
        "topic": draw.choice(TOPICS),
        "item": draw.choice(ITEMS),
        "day": f"{draw.randint(1, 28)} {draw.choice(MONTHS)}",
        "time": f"{draw.randint(1, 11)} {draw.choice(('am', 'pm'))}",
        "place": draw.choice(PLACES),
        "amount": f"{draw.randint(2, 90) * 10} euros",
    }
    facts = {label: values[label] for label in OCCASIONS[occasion]}
    return Row(sender=sender, recipient=recipient, occasion=occasion, facts=facts)

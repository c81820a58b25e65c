"""A database of restaurants: search lines, and texts with slots such as [phone] in place of a venue's values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from logpi.errors import InputError, did_you_mean
from logpi.tasks.dataset import Source, name_of, read_rows

Venue = Mapping[str, str]
INFORMABLE = ("food", "area", "pricerange")  # what can be searched by
REQUESTABLE = ("address", "phone", "postcode", "area", "food", "pricerange")
SEARCH = "search"
ANY = "dontcare"
SLOT = re.compile(r"\[(name|address|phone|postcode|food|area|pricerange)\]")
PHONE = re.compile(r"\b\d{5} ?\d{6}\b")
POSTCODE = re.compile(r"\bc\.? ?b\.? ?\d+ ?,? ?\d ?[a-z]\.? ?[a-z]\b\.?")
AREAS = {"center": "centre"}
PRICES = ("cheap", "moderate", "expensive")


class Restaurants:
    """Venues, and the words that name their values."""

    def __init__(self, data: Source, foods: Sequence[str] = ()):
        """`foods` are further cuisines that people ask for."""
        self.venues = [_venue(row, index, name_of(data)) for index, row in enumerate(read_rows(data))]
        values = {slot: {v[slot] for v in self.venues if slot in v} for slot in ("name", "address", *INFORMABLE)}
        values["food"] |= set(foods)
        values["area"] |= set(AREAS)
        self.patterns = {slot: _any_of(words) for slot, words in values.items() if words}
        self.patterns["pricerange"] = re.compile(rf"\b(?:{'|'.join(PRICES)})(?:ly)?\b")

    def search(self, constraints: Mapping[str, str]) -> list[Venue]:
        """Return the venues that have all these values, in the database's order."""
        wanted = [(slot, value) for slot, value in constraints.items() if value != ANY]
        return [venue for venue in self.venues if all(venue.get(slot) == value for slot, value in wanted)]

    def named(self, text: str) -> Venue | None:
        """Return the first venue whose name stands in a text."""
        found = self.patterns["name"].search(text)
        return None if found is None else next(v for v in self.venues if v["name"] == found.group())

    def with_slots(self, text: str) -> str:
        """Return the text in lower case with slots in place of the database's values."""
        text = " ".join(text.lower().split())
        text = POSTCODE.sub("[postcode]", PHONE.sub("[phone]", text))
        for slot in ("address", "name", *INFORMABLE):
            text = self.patterns[slot].sub(f"[{slot}]", text)
        return text


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return the text with values in its slots; a slot without a value stays."""
    text = SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)
    return text.replace("moderate priced", "moderately priced")


def search_line(constraints: Mapping[str, str]) -> str:
    """Return the line that looks constraints up: search food=thai, area=centre."""
    given = [f"{slot}={constraints[slot]}" for slot in INFORMABLE if constraints.get(slot, ANY) != ANY]
    return f"{SEARCH} {', '.join(given)}".strip()


def read_search(message: str) -> dict[str, str] | None:
    """Return the constraints of a search line; None for another message. What is no slot=value is passed over."""
    verb, _, rest = message.strip().partition(" ")
    if verb != SEARCH:
        return None
    pairs = (part.strip().partition("=") for part in rest.split(","))
    return {slot: value for slot, _, value in pairs if slot in INFORMABLE and value}


def _venue(row: Mapping[str, object], index: int, source: str) -> Venue:
    """Return a row's values in lower case. Raises InputError for a venue without a name, or a value that is no text."""
    found = {slot: row[slot] for slot in ("name", *REQUESTABLE) if slot in row}
    if "name" not in found:
        raise InputError(f'{source}: row {index} has no column "name".{did_you_mean("name", map(str, row))}')
    for slot, value in found.items():
        if not isinstance(value, str) or not value:
            raise InputError(f'{source}: row {index}: "{slot}" is {value!r:.40}; it must be text')
    return {slot: " ".join(str(value).lower().split()) for slot, value in found.items()}


def _any_of(words: set[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")

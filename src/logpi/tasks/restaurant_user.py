"""The other side of a restaurant system: its look-ups, and a user with an agenda (after Schatzmann et al. 2007)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from logpi.environments.multi_turn import Reply
from logpi.randomness import Stream, integer_seed
from logpi.tasks.restaurants import ANY, INFORMABLE, SLOT, Restaurants, Venue, fill, read_search

MESSAGE_COST = 0.02  # of each message of the system, look-ups too
PATIENCE = 8  # replies that a user waits for
NONE_FOUND = re.compile(r"\b(no|not|none|sorry|unfortunately|cannot|any other)\b|n't\b")
BYE = re.compile(r"\b(thank|thanks|bye|goodbye)\b")
QUESTIONS = {
    "food": re.compile(r"\b(food|cuisine|type|kind)\b"),
    "area": re.compile(r"\b(area|part|where|location|side)\b"),
    "pricerange": re.compile(r"\b(price|pricerange|budget|cost)\b"),
}
SAID = {"food": "with [food] food", "area": "in the [area]", "pricerange": "in the [pricerange] price range"}
OF_ANY = {"food": "any type of food", "area": "any area", "pricerange": "any price range"}
ASKED = {
    "address": "address", "phone": "phone number", "postcode": "postcode", "area": "area", "food": "type of food",
    "pricerange": "price range",
}  # fmt: skip
Acts = tuple[bool, tuple[str, ...], tuple[str, ...], tuple[str, ...]]  # opens?, informs, does not care, requests


class Wording:
    """What people said in recorded dialogues, by what they did with it."""

    def __init__(self, dialogues: Sequence[Mapping[str, Any]], restaurants: Restaurants):
        """Keep the user turns whose new wishes all stand in the text, and no other value of the database does."""
        self.said: dict[Acts, list[str]] = {}
        for dialogue in dialogues:
            before: Mapping[str, str] = {}
            for number, turn in enumerate(dialogue["turns"]):
                new = {slot: value for slot, value in turn["state"].items() if before.get(slot) != value}
                text = restaurants.with_slots(turn["user"])
                acts = acts_of(new, turn["requests"], opens=number == 0)
                is_bye = not new and not turn["requests"]
                if tuple(sorted(SLOT.findall(text))) == acts[1] and (bool(BYE.search(text)) if is_bye else True):
                    self.said.setdefault(acts, []).append(text)
                before = turn["state"]

    def say(self, new: Mapping[str, str], requests: Sequence[str], *, opens: bool, number: int) -> str:
        """Return words for these acts, one of those recorded, as `number` picks, or plain ones where there are none."""
        acts = acts_of(new, requests, opens=opens)
        known = self.said.get(acts) or [plain(acts)]
        return fill(known[number % len(known)], new)


def acts_of(new: Mapping[str, str], requests: Sequence[str], *, opens: bool) -> Acts:
    """Return what a user does who says what is new and asks for something."""
    informs = tuple(sorted(slot for slot, value in new.items() if value != ANY))
    return opens, informs, tuple(sorted(slot for slot, value in new.items() if value == ANY)), tuple(sorted(requests))


def plain(acts: Acts) -> str:
    """Return plain words for acts; for none of them, a farewell."""
    _, informs, any_of, requests = acts
    parts = []
    if informs or any_of:
        parts.append(", ".join(["i want a restaurant", *(SAID[s] for s in informs), *(OF_ANY[s] for s in any_of)]))
    if requests:
        parts.append(f"what is the {' and the '.join(ASKED[s] for s in requests)} ?")
    return " . ".join(parts) or "thank you , goodbye ."


class Service:
    """An episode: the database that answers look-ups, and the user who reads everything else.

    The user's policy. Opening: all constraints of the goal, or one of them (drawn). Where the goal has a first choice
    of food that no venue has, it is asked for first and given up once the system says that there is none. Then, at each
    text of the system:
    - a venue that is named is the one offered; what it violates of the wishes is said again;
    - a question about a slot is answered, with "any" where the goal does not say;
    - without an offer, the next wish that was not said yet, else (nothing found, or nothing to say) all of them again;
    - with a venue that fits, the requested slots that were not answered yet are asked for, all or one (drawn);
    - when all are answered, a farewell ends the episode. After 8 texts the user leaves.

    Rewards: (match + success)/2, as it stands after each message, less what it was before, minus 0.02 a message. match:
    the venue offered last satisfies the goal. success: match, and each requested slot's value of that venue was said
    (what the database lacks of a venue can't be asked for).
    """

    def __init__(self, restaurants: Restaurants, wordings: Mapping[str, Wording]):
        self.restaurants, self.wordings = restaurants, wordings

    def reset(self, seed: int, goal: Mapping[str, Any], side: str, **columns: Any) -> str:
        self.seed, self.wording = seed, self.wordings[side]
        self.goal: dict[str, str] = dict(goal["constraints"])
        self.wishes = dict(self.goal)
        first = goal["first_choice"]
        if first and not self.restaurants.search(self.goal | {"food": first}):
            self.wishes["food"] = first
        self.requests: list[str] = list(goal["requests"])
        self.searched: Mapping[str, str] = {}
        self.found: Venue = {}
        self.offer: Venue | None = None
        self.answered: set[tuple[str, str]] = set()  # (venue, slot)
        self.num_texts, self.num_messages, self.worth = 0, 0, 0.0
        constraints = [slot for slot, value in self.wishes.items() if value != ANY] or list(self.wishes)
        first_said = constraints if self._draw(3) else constraints[self._draw(len(constraints), 1) :][:1]
        self.said = {slot: self.wishes[slot] for slot in first_said}
        return self.wording.say(self.said, [], opens=True, number=self._draw(10**6, 2))

    def step(self, message: str) -> Reply:
        """Look up, or let the user answer."""
        self.num_messages += 1
        searched = read_search(message)
        if searched is not None:
            self.searched, found = searched, self.restaurants.search(searched)
            self.found = found[0] if found else {}
            return Reply(found_line(len(found)), self._reward(), role="tool")
        self.num_texts += 1
        return Reply(self._answer(fill(message.lower(), {**self.searched, **self.found})), self._reward())

    def scores(self) -> dict[str, float]:
        return {"success": float(self.success), "match": float(self.match), "turns": float(self.num_texts)}

    @property
    def match(self) -> bool:
        """Whether the venue offered last satisfies the goal."""
        return self.offer is not None and not self._violated(self.offer, self.goal)

    @property
    def success(self) -> bool:
        """Whether it does, and all that was requested of it has been answered."""
        return self.match and not self._open_requests()

    def _reward(self) -> float:
        before, self.worth = self.worth, (self.match + self.success) / 2
        return self.worth - before - MESSAGE_COST

    def _answer(self, text: str) -> str | None:
        """Return the user's words on a text of the system; None: the user leaves."""
        named = self.restaurants.named(text)
        self.offer = named or self.offer
        if self.offer is not None:
            self.answered |= {(self.offer["name"], slot) for slot, value in self.offer.items() if _says(text, value)}
        if self.num_texts == PATIENCE:
            return None
        new, requests = self._acts(text, named)
        if not new and not requests:
            return None
        self.said |= new
        return self.wording.say(new, requests, opens=False, number=self._draw(10**6, 3))

    def _acts(self, text: str, named: Venue | None) -> tuple[dict[str, str], list[str]]:
        """Return what the user does next: what is wished for, what is asked for; neither: a farewell."""
        if self.offer is not None and not self._violated(self.offer, self.wishes):
            requests = self._open_requests()
            return {}, requests if self._draw(2, 4) else requests[:1]
        if self.offer is not None and named is not None:
            return {slot: self.wishes[slot] for slot in self._violated(self.offer, self.wishes)}, []
        if NONE_FOUND.search(text):
            if self.wishes != self.goal:
                changed = {slot: value for slot, value in self.goal.items() if self.wishes[slot] != value}
                self.wishes = dict(self.goal)
                return changed, []
        elif "?" in text:
            asked = [slot for slot, words in QUESTIONS.items() if words.search(text)]
            if asked:
                return {asked[0]: self.wishes.get(asked[0], ANY)}, []
        unsaid = [slot for slot, value in self.wishes.items() if value != ANY and slot not in self.said]
        return {slot: self.wishes[slot] for slot in unsaid[:1] or self.wishes if self.wishes[slot] != ANY}, []

    def _open_requests(self) -> list[str]:
        venue = self.offer or {}
        return [s for s in self.requests if s in venue and (venue["name"], s) not in self.answered]

    def _violated(self, venue: Venue, constraints: Mapping[str, str]) -> list[str]:
        return [slot for slot in INFORMABLE if constraints.get(slot, ANY) not in (ANY, venue.get(slot))]

    def _draw(self, size: int, purpose: int = 0) -> int:
        """Return a number below `size`: a function of the episode's seed, the text that is answered and the purpose."""
        return integer_seed(self.seed, Stream.ENVIRONMENT, self.num_texts, purpose) % size


def found_line(num_venues: int) -> str:
    """Return what the database answers."""
    return "no venue" if not num_venues else "1 venue" if num_venues == 1 else f"{num_venues} venues"


def _says(text: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}(?:ly)?(?!\w)", text) is not None

"""CamRest676: a system that finds a restaurant and answers about it, and a user with a goal (Wen et al. 2017).

The system looks venues up with a line such as `search food=thai, area=centre`, is told how many there are, and writes
with slots: "[name] is at [address]". The slots are filled from the first venue found (else from what was searched), and
the user reads that. Recorded texts get slots in the same way: the corpus's usual form, without which a small network
would have to learn 110 telephone numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from logpi.errors import InputError, missing_extra
from logpi.tasks.base import Problem, Task
from logpi.tasks.dataset import Row, Source, name_of, read_rows
from logpi.tasks.problems import cell
from logpi.tasks.restaurant_user import Service, Wording, found_line
from logpi.tasks.restaurants import ANY, INFORMABLE, REQUESTABLE, SLOT, Restaurants, search_line

FIRST_CHOICE = re.compile(r"serve ([a-z ]+?) food\. if there is no such venue how about")
MAX_TURNS = 20  # messages of the system, look-ups among them


def camrest(data: Source, database: Source | None = None, heldout: int = 135) -> Task:
    """Return the task of recorded dialogues in NNDIAL's format, the last `heldout` in the file's order held out. The
    database is CamRestDB.json beside the file unless it is named.

    To imitate: the recorded dialogues, a look-up wherever what the user wants has changed. To train on: episodes with
    an agenda-based user (`restaurant_user`) from each dialogue's goal. Goals that no venue satisfies are left out.
    Metrics at evaluations: match, success, turns, and corpus BLEU of greedy replies to the recorded held-out contexts.
    """
    _require_sacrebleu()
    rows = read_rows(data)
    if isinstance(heldout, bool) or not isinstance(heldout, int) or not 0 <= heldout < len(rows):
        raise InputError(f"heldout={heldout}: must be a count from 0 to {len(rows) - 1}, of {len(rows)} dialogues")
    dialogues = [_dialogue(row, index, name_of(data)) for index, row in enumerate(rows)]
    foods = {value for d in dialogues for turn in d["turns"] for slot, value in turn["state"].items() if slot == "food"}
    restaurants = Restaurants(_database(data) if database is None else database, sorted(foods - {ANY}))
    num_train = len(dialogues) - heldout
    sides = {"train": dialogues[:num_train], "heldout": dialogues[num_train:]}
    problems = {side: [_problem(d, side, restaurants) for d in found] for side, found in sides.items()}
    wordings = {side: Wording(found, restaurants) for side, found in sides.items()}
    solvable = {
        side: [p for p in found if restaurants.search(p.columns["goal"]["constraints"])]
        for side, found in problems.items()
    }
    return Task(
        "camrest",
        solvable["train"],
        solvable["heldout"],
        solution="messages",
        environment=partial(Service, restaurants, wordings),
        max_turns=MAX_TURNS,
        replies=recorded_replies,
        compare=corpus_bleu,
    )


def _database(data: Source) -> Path:
    if not isinstance(data, str | Path):
        raise InputError("database: name the file with the venues (CamRestDB.json)")
    return Path(data).expanduser().parent / "CamRestDB.json"


def _dialogue(row: Row, index: int, source: str) -> dict[str, Any]:
    """Return a recorded dialogue: its goal, and of each turn what was said, what the user wants and asks for."""
    goal, turns = cell(row, "goal", index, source, dict), cell(row, "dial", index, source, list)
    try:
        constraints = {slot: value for slot, value in goal["constraints"]}
        text = " ".join(goal["text"].lower().split())
        first = FIRST_CHOICE.search(text)
        requests = [slot for slot in goal["request-slots"] if slot in REQUESTABLE]
        turns = [_turn(turn) for turn in turns]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: row {index} is not a dialogue in NNDIAL's format ({error!r:.80})") from error
    wanted = {"constraints": constraints, "requests": requests, "first_choice": first[1] if first else None}
    return {"uid": index, "goal": wanted, "turns": turns}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    acts = [(act["act"], *pair) for act in turn["usr"]["slu"] for pair in act["slots"]]
    return {
        "user": " ".join(turn["usr"]["transcript"].lower().split()),
        "system": turn["sys"]["sent"],
        "state": {slot: value for act, slot, value in acts if act == "inform" and slot in INFORMABLE},
        "requests": sorted({value for act, _, value in acts if act == "request" and value in REQUESTABLE}),
    }


def _problem(dialogue: Mapping[str, Any], side: str, restaurants: Restaurants) -> Problem:
    """Return the problem of a dialogue: its goal for the user, and what was said, with look-ups, to imitate."""
    messages: list[dict[str, str]] = []
    looked_up: Mapping[str, str] = {}
    for turn in dialogue["turns"]:
        messages.append({"role": "user", "content": turn["user"]})
        wanted = {slot: value for slot, value in turn["state"].items() if value != ANY}
        if wanted != looked_up:
            looked_up = wanted
            messages.append({"role": "assistant", "content": search_line(wanted)})
            messages.append({"role": "tool", "content": found_line(len(restaurants.search(wanted)))})
        messages.append({"role": "assistant", "content": restaurants.with_slots(turn["system"])})
    return Problem(dialogue["uid"], [], {"goal": dialogue["goal"], "side": side, "messages": messages})


def recorded_replies(problem: Problem) -> list[Problem]:
    """Return a problem for each recorded reply to the user: everything before it, and the column "reference"."""
    messages = problem.columns["messages"]
    last = [i for i, m in enumerate(messages) if i == len(messages) - 1 or messages[i + 1]["role"] == "user"]
    return [Problem(100 * problem.uid + i, messages[:i], {"reference": messages[i]["content"]}) for i in last]


def corpus_bleu(texts: Sequence[str], recorded: Sequence[Problem]) -> dict[str, Any]:
    """Return corpus BLEU (0 to 1) of texts against the recorded replies, both in lower case with slots, a slot one
    word, and sacrebleu's signature (Post 2018)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    references = [_slots_as_words(problem.columns["reference"]) for problem in recorded]
    score = metric.corpus_score([_slots_as_words(text) for text in texts], [references])
    return {"bleu": score.score / 100, "bleu_signature": str(metric.get_signature())}


def _slots_as_words(text: str) -> str:
    return SLOT.sub(r"slot\1", text)


def _require_sacrebleu() -> None:
    try:
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise missing_extra("sacrebleu", "rewards", "BLEU of the task camrest") from error

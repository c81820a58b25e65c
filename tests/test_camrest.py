"""Restaurant dialogues: slots and look-ups, the user's agenda, rewards on good and bad systems, the corpus itself."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path

import pytest

from logpi import api
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.recipes import resolve
from logpi.tasks import make_task
from logpi.tasks.camrest import corpus_bleu
from logpi.tasks.restaurant_user import MESSAGE_COST, PATIENCE, Service, Wording, acts_of, plain
from logpi.tasks.restaurants import Restaurants, fill, read_search, search_line

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "dialogue_camrest676" / "CamRest676.json.gz"
real = pytest.mark.skipif(not DATA.exists(), reason=f"the development data is not at {DATA}")
HEAD = "# the corpus begins\n# with a licence\n"

VENUES = [
    {"name": "Golden Wok", "food": "chinese", "area": "north", "pricerange": "moderate", "phone": "01223 350688",
     "address": "191 Histon Road Chesterton", "postcode": "C.B 4, 3 H.L", "type": "restaurant"},
    {"name": "Curry Garden", "food": "indian", "area": "centre", "pricerange": "expensive", "phone": "01223 302330",
     "address": "106 Regent Street City Centre", "postcode": "C.B 2, 1 D.P", "type": "restaurant"},
    {"name": "Rice House", "food": "chinese", "area": "centre", "pricerange": "cheap",
     "address": "88 Mill Road City Centre", "postcode": "C.B 1, 2 A.S", "type": "restaurant"},
]  # fmt: skip


def turn(user, system, wants=(), asks=()):
    slu = [{"act": "inform", "slots": [list(pair)]} for pair in wants]
    slu += [{"act": "request", "slots": [["slot", slot]]} for slot in asks]
    return {"usr": {"transcript": user, "slu": slu}, "sys": {"sent": system, "DA": []}}


FOOD, PRICE = ("food", "chinese"), ("pricerange", "moderate")
DIALOGUE = {
    "goal": {
        "constraints": [list(FOOD), list(PRICE)],
        "request-slots": ["phone"],
        "text": "Task 1: You want a moderately priced place and it should serve Cantonese food. "
        "If there is no such venue how about chinese type of food.",
    },
    "dial": [
        turn("I want Cantonese food.", "There is no Cantonese  restaurant.", [("food", "cantonese")]),
        turn("How about Chinese food, moderately priced?", "Golden Wok serves chinese food.", [FOOD, PRICE]),
        turn("What is the phone number?", "It is 01223 350688 , postcode C.B 4, 3 H.L", [FOOD, PRICE], ["phone"]),
        turn("Thank you, bye.", "Goodbye.", [FOOD, PRICE]),
    ],
}


def write(folder, dialogues=None, venues=VENUES):
    (folder / "CamRestDB.json").write_text(HEAD + json.dumps(venues))
    path = folder / "dialogues.json.gz"
    path.write_bytes(gzip.compress((HEAD + json.dumps(dialogues or [DIALOGUE] * 4)).encode()))
    return str(path)


def restaurants():
    return Restaurants(VENUES, ["cantonese"])


# --- slots and look-ups -----------------------------------------------------------------------------------------------


def test_values_become_slots_and_slots_values():
    db = restaurants()
    text = "Golden  Wok is moderately priced, at 191 Histon Road Chesterton, C.B 4, 3 H.L; call 01223 350688."
    slots = db.with_slots(text)
    assert slots == "[name] is [pricerange] priced, at [address], [postcode]; call [phone]."
    assert fill(slots, db.venues[0]).startswith("golden wok is moderately priced, at 191 histon road chesterton, c.b 4")
    assert db.with_slots("an inexpensive southern place") == "an inexpensive southern place"  # words, not parts of them
    assert fill("no [food] in the [area]", {"food": "thai"}) == "no thai in the [area]"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("search food=chinese, area=north", {"food": "chinese", "area": "north"}),
        ("search food=asian oriental", {"food": "asian oriental"}),
        ("search", {}),
        ("  search area=", {}),
        ("search stars=5, food", {}),
        ("searching food=chinese", None),
        ("[name] is nice", None),
        ("", None),
    ],
)
def test_search_lines(line, found):
    assert read_search(line) == found


def test_a_search_line_says_what_it_reads():
    wanted = {"area": "north", "food": "chinese", "pricerange": "dontcare"}
    assert search_line(wanted) == "search food=chinese, area=north"
    assert [v["name"] for v in restaurants().search(wanted)] == ["golden wok"]
    assert len(restaurants().search({})) == 3 and not restaurants().search({"food": "thai"})


# --- the user ---------------------------------------------------------------------------------------------------------


def service(constraints=(FOOD, PRICE), requests=("phone",), first_choice=None, seed=0):
    found = Service(restaurants(), {"train": Wording([], restaurants())})
    goal = {"constraints": dict(constraints), "requests": list(requests), "first_choice": first_choice}
    return found, found.reset(seed, goal, "train")


def converse(system, **goal):
    """Return (what everybody said, rewards, scores) with a system that writes these messages."""
    environment, opening = service(**goal)
    said, rewards = [opening], []
    for message in system:
        reply = environment.step(message)
        said.append(reply.text)
        rewards.append(reply.reward)
        if reply.text is None:
            break
    return said, rewards, environment.scores()


GOOD = ["search food=chinese, pricerange=moderate", "how about [name] ?", "call [phone] ."]


def test_a_good_system_gets_everything():
    said, rewards, scores = converse(GOOD)
    assert "chinese" in said[0] or "moderate" in said[0]
    assert said[1] == "1 venue" and "phone number" in said[2] and said[3] is None
    assert rewards == pytest.approx([-MESSAGE_COST, 0.5 - MESSAGE_COST, 0.5 - MESSAGE_COST])
    assert scores == {"success": 1.0, "match": 1.0, "turns": 2.0}


@pytest.mark.parametrize(
    ("system", "match", "success"),
    [
        (["[name] . call [phone] ."], 0, 0),  # nothing looked up: slots stay empty
        (["search food=indian", "[name] , call [phone] ."], 0, 0),  # another venue, its own number
        (["search food=chinese, area=centre", "[name] . call [phone] ."], 0, 0),  # one that has no number
        ([*GOOD[:2], "call 01223 302330 ."], 1, 0),  # the right venue, another's number
        (["golden wok , call 01223 350688 ."], 1, 1),  # by heart: right is right
        (["golden wok , call 01223 350689 ."], 1, 0),
        ([*GOOD, "curry garden ."], 1, 1),  # the episode is over by then
        (["golden wok .", "curry garden ."], 0, 0),  # the last offer counts
        (["[name] [phone] " * 50], 0, 0),
        (["thank you , goodbye ."] * 3, 0, 0),
        ([""] * 3, 0, 0),
    ],
)
def test_good_bad_and_hostile_systems(system, match, success):
    _, rewards, scores = converse(system)
    assert (scores["match"], scores["success"]) == (match, success)
    assert sum(rewards) == pytest.approx((match + success) / 2 - MESSAGE_COST * len(rewards))


def test_what_a_user_does():
    said, *_ = converse(["search food=indian", "[name] ."])  # a venue that violates the wishes
    assert "chinese" in said[-1] and "moderate" in said[-1]
    said, *_ = converse(["what area would you like ?"])
    assert said[-1] == plain(acts_of({"area": "dontcare"}, [], opens=False))
    said, *_ = converse(["what price range ?"])
    assert "moderate" in said[-1] and "chinese" not in said[-1]
    said, rewards, scores = converse(["hello"] * 20)
    assert said[-1] is None and scores["turns"] == PATIENCE == len(rewards)


def test_of_two_venues_only_the_offers_own_values_count():
    """The number of the venue offered before answers nothing about the one offered last."""
    _, _, scores = converse(["curry garden , phone 01223 302330 .", "golden wok ."])
    assert scores["match"] == 1 and scores["success"] == 0


def test_a_first_choice_is_given_up_when_there_is_none():
    environment, _ = service(first_choice="cantonese")
    assert environment.wishes["food"] == "cantonese" and environment.goal["food"] == "chinese"
    assert environment.step("search food=cantonese").text == "no venue"
    assert "chinese" in environment.step("sorry , there is no [food] restaurant .").text
    assert service(first_choice="chinese")[0].wishes["food"] == "chinese"


def test_a_user_is_a_function_of_the_seed():
    openings = [service(seed=seed)[1] for seed in range(40)]
    assert openings == [service(seed=seed)[1] for seed in range(40)]
    assert any("moderate" in o and "chinese" in o for o in openings)
    assert any(("moderate" in o) != ("chinese" in o) for o in openings)  # one wish at first


def test_recorded_words_are_used_where_they_fit():
    turns = [
        {"user": "i would like chinese food", "state": {"food": "chinese"}, "requests": []},
        {"user": "the phone of golden wok", "state": {"food": "chinese"}, "requests": ["phone"]},  # names a venue
        {"user": "a cheap one", "state": {"food": "chinese", "area": "north"}, "requests": []},  # another value
    ]
    wording = Wording([{"turns": turns}], restaurants())
    assert wording.said == {(True, ("food",), (), ()): ["i would like [food] food"]}
    assert wording.say({"food": "indian"}, [], opens=True, number=7) == "i would like indian food"
    assert wording.say({}, ["phone"], opens=False, number=0) == "what is the phone number ?"


# --- the task ---------------------------------------------------------------------------------------------------------


def test_a_dialogue_becomes_messages_with_look_ups(tmp_path):
    task = make_task("camrest", data=write(tmp_path), heldout=1)
    said = [(m["role"], m["content"]) for m in task.train[0].columns["messages"]]
    assert said == [
        ("user", "i want cantonese food."),
        ("assistant", "search food=cantonese"),
        ("tool", "no venue"),
        ("assistant", "there is no [food] restaurant."),
        ("user", "how about chinese food, moderately priced?"),
        ("assistant", "search food=chinese, pricerange=moderate"),
        ("tool", "1 venue"),
        ("assistant", "[name] serves [food] food."),
        ("user", "what is the phone number?"),
        ("assistant", "it is [phone] , postcode [postcode]"),
        ("user", "thank you, bye."),
        ("assistant", "goodbye."),
    ]
    goal = {"constraints": dict([FOOD, PRICE]), "requests": ["phone"], "first_choice": "cantonese"}
    assert task.train[0].columns["goal"] == goal and (len(task.train), len(task.heldout)) == (3, 1)
    recorded = task.replies(task.heldout[0])
    references = ["there is no [food] restaurant.", "[name] serves [food] food.", *[text for _, text in said[9::2]]]
    assert [p.columns["reference"] for p in recorded] == references
    assert [p.prompt[-1]["role"] for p in recorded] == ["tool", "tool", "user", "user"]


def test_goals_that_no_venue_satisfies_are_left_out(tmp_path):
    hopeless = {**DIALOGUE, "goal": {**DIALOGUE["goal"], "constraints": [["food", "thai"]]}}
    task = make_task("camrest", data=write(tmp_path, [DIALOGUE, hopeless, DIALOGUE]), heldout=1)
    assert [p.uid for p in task.train] == [0] and [p.uid for p in task.heldout] == [2]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"goal": {"constraints": [["food"]]}}, "row 0 is not a dialogue in NNDIAL's format"),
        ({"goal": {}}, "row 0 is not a dialogue in NNDIAL's format"),
        ({"goal": "food"}, 'row 0: "goal" is .food.'),
        ({"dial": [{"usr": None}]}, "row 0 is not a dialogue in NNDIAL's format"),
        ({"dial": 3}, 'row 0: "dial" is 3'),
    ],
)
def test_what_is_no_dialogue_is_said(tmp_path, broken, problem):
    with pytest.raises(InputError, match=problem):
        make_task("camrest", data=write(tmp_path, [{**DIALOGUE, **broken}] * 2), heldout=1)


def test_files_that_can_not_be_used(tmp_path):
    path = write(tmp_path)
    with pytest.raises(InputError, match="heldout=4: must be a count from 0 to 3, of 4 dialogues"):
        make_task("camrest", data=path, heldout=4)
    (tmp_path / "CamRestDB.json").write_text(HEAD + '[{"name": "x"},\n')
    with pytest.raises(InputError, match=r"CamRestDB.json:4: not valid JSON"):  # the comments count as lines
        make_task("camrest", data=path, heldout=1)
    with pytest.raises(InputError, match="no such file"):
        make_task("camrest", data=path, heldout=1, database=str(tmp_path / "names.json"))
    for venue, problem in (({"nam": "x"}, r"no column .name"), ({"name": 3}, r'"name" is 3')):
        with pytest.raises(InputError, match=problem):
            make_task("camrest", data=path, heldout=1, database=[venue])


def test_bleu_is_sacrebleus_with_a_slot_as_a_word():
    import sacrebleu

    class Recorded:
        def __init__(self, reference):
            self.columns = {"reference": reference}

    texts = ["[name] is a nice place in the [area] .", "the phone is [phone] ."]
    references = ["[name] is a good place in the [area] .", "the number is [phone] ."]
    found = corpus_bleu(texts, [Recorded(r) for r in references])
    words = [[t.replace("[", "slot").replace("]", "") for t in lines] for lines in (texts, references)]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(words[0], [words[1]]).score / 100)
    assert "tok:13a" in found["bleu_signature"] and "version:" in found["bleu_signature"]
    assert corpus_bleu(references, [Recorded(r) for r in references])["bleu"] == pytest.approx(1)


# --- on the corpus ----------------------------------------------------------------------------------------------------


@real
def test_the_corpus():
    task = make_task("camrest", data=str(DATA))
    assert (len(task.train), len(task.heldout)) == (404, 134)  # a goal on each side has no venue
    assert not {p.uid for p in task.train} & {p.uid for p in task.heldout}
    assert isinstance(task.environment, partial)
    wordings = task.environment.args[1]
    assert sum(map(len, wordings["train"].said.values())) > 1400
    messages = [m["content"] for p in task.train for m in p.columns["messages"] if m["role"] == "assistant"]
    assert sum("[name]" in m for m in messages) > 500 and not any("01223" in m for m in messages)


EVERYTHING = "[name] : [address] , [phone] , [postcode] , [food] , [area] , [pricerange]"


def perfect(environment, problem):
    """Play a system that knows the user's goal; return the scores."""
    environment.reset(5, **{k: v for k, v in problem.columns.items() if k != "messages"})
    environment.step(search_line(environment.goal))
    reply = environment.step("i am sorry , there is no such place .")
    while reply.text is not None:
        reply = environment.step(EVERYTHING)
    return environment.scores()


@real
def test_an_oracle_succeeds_with_every_user():
    task = make_task("camrest", data=str(DATA))
    problems = [*task.train, *task.heldout]
    scores = [perfect(task.environment(), problem) for problem in problems]
    failed = [p.columns["goal"] for p, s in zip(problems, scores) if not s["success"]]
    assert not failed
    assert sum(s["turns"] for s in scores) / len(scores) < 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("data", ["made up", pytest.param("real", marks=real)])
def test_the_recipes_in_small(tmp_path, data):
    """Both stages, --smoke in the size of the network too; the second begins with what the first left."""
    path = write(tmp_path) if data == "made up" else str(DATA)
    heldout = 1 if data == "made up" else 530
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    common = {
        "task": {"data": path, "heldout": heldout},
        "max_steps": 2,
        "threads": 1,
        "evaluation": {"every_steps": 2},
    }
    small = {"sft": {"batch_size": 2, "new": {"vocab_size": 300, "context_length": 1024, "shape": shape}}}
    rollout = {"max_completion_length": 8}
    config = resolve("camrest-sft", common | small | {"rollout": rollout})
    warm = api.run(config, folder=tmp_path / "sft", observer=make_observer(json=True))
    after = warm["evaluation"]["after"]
    assert {"loss", "success", "match", "turns"} <= set(after["metrics"]) and 0 <= after["bleu"] <= 1
    rollout |= {"num_prompts": 2, "num_generations": 2}
    config = resolve("camrest", common | {"policy": {"model": warm["final"]}, "rollout": rollout, "strict": True})
    trained = api.run(config, folder=tmp_path / "pg", observer=make_observer(json=True))
    assert trained["status"] == "finished" and trained["ledger"]["as_planned"]

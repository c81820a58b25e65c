"""E-mails: the reward on good, bad and hostile completions, made-up rows, rows of one's own, runs."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest

from logpi import api
from logpi.errors import InputError
from logpi.tasks import make_task
from logpi.tasks.emails import SHOWN, SHOWN_EMAIL, complete, email, facts_stated, nothing_invented, parts_present

FACTS = ["the winter coats", "160 euros", "13 January"]
COLUMNS = {"sender": ["Simon Adler"], "recipient": ["Kate Castro"], "facts": [FACTS]}
PROMPT = (
    "Write a short e-mail from Simon Adler to Kate Castro about a bill. It must say:\n"
    "- item: the winter coats\n- amount: 160 euros\n- day: 13 January"
)
GREETING, CLOSING = "Dear Kate,\n\n", "\n\nBest regards,\nSimon Adler"
BODY = (
    "I am writing about your bill for the winter coats. It comes to 160 euros in all. "
    "Please let us have the money by 13 January at the latest, so that we can close our books."
)


def given(function, *texts, **changes):
    columns = {name: values * len(texts) for name, values in (COLUMNS | changes).items()}
    return function([[{"role": "assistant", "content": text}] for text in texts], **columns)


def test_a_whole_email_has_everything_in_whatever_wording():
    good = [
        GREETING + BODY + CLOSING,
        "Subject: Your bill\n\nHello Ms Castro,\n" + BODY + "\n\nKind regards,\n\nSimon",
        "Good morning Kate, " + BODY + "\nThank you,\nSimon Adler\n",
        ("Dear Kate,\n\n" + BODY + "\n\nSincerely, Simon Adler").upper(),
        GREETING + "Thank you for your order! " + BODY + CLOSING,  # no closing, though it begins like one
    ]
    assert given(complete, *good) == [1.0] * 5 and given(email, *good) == [1.0] * 5
    shown = {"sender": ["Ruth Lang"], "recipient": ["Peter Moss"], "facts": [list(SHOWN["facts"].values())]}
    assert given(complete, SHOWN_EMAIL, **shown) == [1.0]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        (GREETING + BODY.replace("160", "170") + CLOSING, (2 / 3 + 1) / 2),  # a fact is wrong
        (GREETING + BODY.replace("13 January", "131 January") + CLOSING, (2 / 3 + 1) / 2),  # within another number
        (BODY + CLOSING, (1 + 2 / 3) / 2),  # no greeting
        ("Dear Simon,\n\n" + BODY + CLOSING, (1 + 2 / 3) / 2),  # to somebody else
        (GREETING + BODY, (1 + 2 / 3) / 2),  # cut before its closing
        (GREETING + BODY + "\n\nBest regards,\nKate Castro", (1 + 2 / 3) / 2),  # from somebody else
        (GREETING + BODY + CLOSING + "\nP.S. One more thing that I forgot.\nAnd another.", (1 + 2 / 3) / 2),
        (GREETING + BODY + "\n\n- the coats" + CLOSING, 1 / 2),  # a list behind it
        (GREETING + BODY + " " + BODY + CLOSING, 1 / 2),  # said twice
    ],
)
def test_what_is_missing_is_not_paid(text, worth):
    assert given(email, text)[0] == pytest.approx(worth) and given(complete, text) == [0.0]


HOSTILE = {
    "empty": "",
    "white space": " \n\n\t ",
    "the prompt": PROMPT,
    "the list": GREETING + "- item: the winter coats\n- amount: 160 euros\n- day: 13 January" + CLOSING,
    "the list without bullets": GREETING + "item: the winter coats.\namount: 160 euros.\nday: 13 January." + CLOSING,
    "a list of sentences": GREETING
    + "- We send you the winter coats soon.\n- They cost you 160 euros in all.\n* Please pay us by 13 January."
    + CLOSING,
    "a numbered list": GREETING + "1. the winter coats.\n2. 160 euros.\n3. 13 January." + CLOSING,
    "facts and nothing else": GREETING + "The winter coats. 160 euros. 13 January." + CLOSING,
    "facts in a row": GREETING + "the winter coats, 160 euros, 13 January are to be said." + CLOSING,
    "no sentence": GREETING + "about the winter coats which cost 160 euros until the day of 13 January" + CLOSING,
    "repeated greeting": GREETING * 30,
    "a word": "Dear " * 500,
    "facts in the closing": GREETING + "Best regards,\nSimon Adler the winter coats 160 euros 13 January.",
    "control characters": "\x00\x1b[31m" * 40,
    "one letter": "é" * 10_000,
    "surrogates": "\ud7ff" * 50,
    "marks": "?!." * 400,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_dumped_facts_and_hostile_texts_are_worth_little(name):
    (worth,) = given(email, HOSTILE[name])
    assert 0.0 <= worth < 0.1 and given(complete, HOSTILE[name]) == [0.0]
    assert given(facts_stated, HOSTILE[name]) == [0.0]
    assert all(0.0 <= value <= 1.0 for value in given(parts_present, HOSTILE[name]))


def test_length_counts_on_both_sides():
    short = GREETING + "The coats are here and they are nice." + CLOSING
    words = len(short.split())
    assert words < 25 and given(email, short)[0] == pytest.approx((0 + 1) / 2 * words / 25)
    more = " ".join(f"Here is sentence number {word} of those that I have." for word in range(20))
    long = GREETING + BODY + " " + more + CLOSING
    assert given(email, long)[0] == pytest.approx(90 / len(long.split())) and len(long.split()) > 200


def test_the_judge_sees_what_the_prompt_did_not_say():
    texts = [BODY, BODY + " Call 555.", BODY + " See you on Monday.", BODY + " [Your Name]", BODY.replace("160", "61")]
    prompts = [[{"role": "user", "content": "It costs 999."}, {"role": "user", "content": PROMPT}]] * len(texts)
    assert nothing_invented(texts, prompts) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_made_up_rows_are_a_function_of_seed_and_index():
    few, more = (make_task("emails", num_problems=num, heldout=0) for num in (20, 40))
    assert [p.prompt for p in few.train] == [p.prompt for p in more.train[:20]]
    assert [p.prompt for p in few.train] != [
        p.prompt for p in make_task("emails", num_problems=20, seed=1, heldout=0).train
    ]
    for problem in more.train:
        assert problem.prompt[1]["content"] == SHOWN_EMAIL
        assert all(fact in problem.prompt[-1]["content"] for fact in problem.columns["facts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": [{"sender": "A", "recipient": "B", "occasion": "c", "facts": []}]},
            'row 0: "facts" is .* must be dict',
        ),
        ({"data": [{"sender": "A", "recipient": "B", "occasion": "c", "facts": {}}]}, "must be text, not empty"),
        ({"data": [{"sender": "A", "recipient": "B", "occasion": "c", "facts": {"n": 3}}]}, "must be text, not empty"),
        (
            {"data": [{"sender": "A", "recipient": " ", "occasion": "c", "facts": {"n": "3"}}]},
            "must be text, not empty",
        ),
        ({"data": [{"sender": "A", "recipent": "B"}]}, 'no column "recipient".*Did you mean "recipent"'),
        ({"num_problems": 1}, "num_problems=1: must be an integer from 2"),
        ({"template": "{facts}"}, r"has no {sender}"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        make_task("emails", **({"heldout": 0} | changes))


def test_the_recipe_runs_and_a_file_is_scored(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    rows = [{**SHOWN, "sender": f"{name} Lang"} for name in ("Ann", "Bea")]
    Path("mails.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = models.write(tmp_path / "tiny", "llama", context=1024)
    code, _, err = call("train", "emails", "--model", tiny, "--threads", "1", "--smoke", "--run", "runs/emails")
    assert code == 0, err
    found = api.evaluate_run("runs/emails", data="mails.jsonl")
    assert found["n"] == 2 and found["watched"] == ["nothing_invented", "distinct_2"]
    assert set(found["metrics"]) >= {"complete", "email", "facts_stated", "parts_present", "nothing_invented"}

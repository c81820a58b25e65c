"""Role labelling: the scorer against one that reads CoNLL-2005's columns, tags, rewards on hostile text, bad files."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from logpi.errors import InputError
from logpi.evaluation import corpus_estimate
from logpi.tasks import make_task
from logpi.tasks.problems import columns_of
from logpi.tasks.rewarding import as_completions, score
from logpi.tasks.role_spans import Argument, Span, arguments, counts, f1, spans_of, tags_of

SOLD = {
    "id": "s1",
    "tokens": ["Ann", "sold", "the", "car", "that", "Bo", "liked", "."],
    "props": [
        {"predicate": 1, "roleset": "sell.01", "args": [["ARG0", 0, 1], ["ARG1", 2, 7]]},
        {"predicate": 6, "roleset": "like.02", "args": [["ARG1", 2, 4], ["R-ARG1", 4, 5], ["ARG0", 5, 6]]},
    ],
}
WAS = {"id": "s2", "tokens": ["It", "was", "sold", "."], "props": [{"predicate": 1, "roleset": "be.03", "args": []},
       {"predicate": 2, "roleset": "sell.01", "args": [["ARG1", 0, 1]]}]}  # fmt: skip
ROLES = [{"id": "sell.01", "name": "commerce: seller", "roles": [{"arg": "ARG0", "descr": "seller"},
          {"arg": "ARG1", "descr": "thing sold"}]}]  # fmt: skip


@pytest.fixture
def data() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "srl_ewt_propbank"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return folder


def write(folder):
    """Write training and held-out sentences, compressed, and what roles mean."""
    for name, ids in (("srl.train", range(40)), ("srl.dev", range(40, 44))):
        rows = [
            {**row, "id": f"{row['id']}-{i}", "text": f"{i} {' '.join(row['tokens'])}"}
            for i in ids
            for row in (SOLD, WAS)
        ]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    (folder / "rolesets.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROLES).encode()))


def task_of(form="tags", rows=(SOLD, WAS), **options):
    return make_task("role_labelling", data=list(rows), heldout=0, form=form, **{"min_count": 1, **options})


def reward(task, problem, text):
    completions = as_completions([problem.prompt], [text])
    return score(task.rewards, [problem.prompt], completions, [[0]], columns_of([problem])).total[0]


# --- the scorer, against one that was written from the official one's description and reads its files ---------------


def column(spans, num_words):
    """Return a proposition as a column of CoNLL-2005: (A0* at a span's first word, *) at its last one."""
    cells = ["*"] * num_words
    for label, start, end in spans:
        cells[start] = f"({label}{cells[start]}"
        cells[end - 1] += ")"
    return cells


def score_columns(gold, predicted):
    """Return (right, over-predicted, missed) of two columns, as srl-eval.pl goes about it: phrases in the order of
    words; C-X goes into the newest X, which it makes longer, and becomes an X where there is none; an argument is
    right where one with its ends has its type and, if it has parts, the same parts; V does not count."""

    def read(cells):
        newest, found, opened = {}, [], None
        for word, cell in enumerate(cells):
            if begun := re.match(r"\(([^*]+)\*", cell):
                opened = (begun[1], word)
            if cell.endswith(")"):
                label, first = opened
                kind = label[2:] if label.startswith("C-") else label
                if label.startswith("C-") and kind in newest:
                    newest[kind]["end"] = word
                    newest[kind]["parts"].append((first, word))
                else:
                    newest[kind] = {"type": kind, "start": first, "end": word, "parts": [(first, word)]}
                    found.append(newest[kind])
        return [a for a in found if a["type"] != "V"]

    wanted, given = read(gold), read(predicted)
    right = 0
    for one in given:
        same = [g for g in wanted if (g["start"], g["end"]) == (one["start"], one["end"])]
        right += bool(same) and same[0]["type"] == one["type"] and same[0]["parts"] == one["parts"]
    return right, len(given) - right, len(wanted) - right


def random_spans(draw, num_words):
    spans, word = [], 0
    while word < num_words:
        length = draw.randint(1, 3)
        if draw.random() < 0.7 and word + length <= num_words:
            spans.append(Span(draw.choice(["V", "A0", "A1", "C-A0", "C-A1", "R-A0", "C-V"]), word, word + length))
        word += length
    return spans


def test_the_scorer_agrees_with_one_for_columns():
    draw, total, differences = random.Random(0), [0, 0, 0], 0
    for _ in range(4000):
        num_words = draw.randint(1, 9)
        gold = random_spans(draw, num_words)
        predicted = [s for s in gold if draw.random() < 0.8] if draw.random() < 0.7 else random_spans(draw, num_words)
        right, over, missed = score_columns(column(gold, num_words), column(predicted, num_words))
        assert counts(predicted, gold) == (right, right + over, right + missed), (gold, predicted)
        total = [a + b for a, b in zip(total, (right, over, missed))]
        differences += arguments(gold) != {Argument(s.label, ((s.start, s.end),)) for s in gold}
    assert min(total) > 500 and differences > 1000  # parts, V and orphans were met


@pytest.mark.parametrize(
    ("gold", "predicted", "wanted"),
    [
        ([("A0", 0, 2), ("A1", 3, 5)], [("A0", 0, 2), ("A1", 3, 5)], (2, 2, 2)),
        ([("A0", 0, 2)], [("A0", 0, 3)], (0, 1, 1)),  # one word too many
        ([("A0", 0, 2)], [("A1", 0, 2)], (0, 1, 1)),  # another label
        ([("A1", 0, 2), ("C-A1", 4, 5)], [("A1", 0, 2)], (0, 1, 1)),  # half an argument is none
        ([("A1", 0, 2), ("C-A1", 4, 5)], [("A1", 0, 2), ("C-A1", 4, 5)], (1, 1, 1)),  # two parts, one argument
        ([("A1", 0, 2), ("C-A1", 4, 5)], [("A1", 0, 5)], (0, 1, 1)),  # the same ends, other words
        ([("A1", 4, 5)], [("C-A1", 4, 5)], (1, 1, 1)),  # continues nothing: counts as A1
        ([("A1", 0, 1), ("A1", 2, 3), ("C-A1", 4, 5)], [("A1", 0, 1), ("A1", 2, 3)], (1, 2, 2)),  # of the newest
        ([("A0", 0, 1), ("R-A0", 1, 2)], [("R-A0", 1, 2)], (1, 1, 2)),
        ([("V", 0, 1), ("C-V", 2, 3)], [], (0, 0, 0)),  # the predicate is not scored
        ([], [("A0", 0, 1)], (0, 1, 0)),
        ([], [], (0, 0, 0)),
    ],
)
def test_arguments_by_hand(gold, predicted, wanted):
    assert counts([Span(*s) for s in predicted], [Span(*s) for s in gold]) == wanted


def test_f1_is_the_harmonic_mean_and_nothing_to_find_is_right():
    assert f1(2, 4, 5) == pytest.approx(2 * 0.5 * 0.4 / 0.9)
    assert (f1(0, 0, 0), f1(0, 1, 0), f1(0, 0, 1)) == (1.0, 0.0, 0.0)


def test_corpus_f1_counts_arguments_not_sentences():
    """2 of 3 predicted and 6 gold arguments: 2·2/9, where a mean over sentences would give another number."""
    task = task_of()
    texts = ["B-ARG0 O B-ARG1 I-ARG1 I-ARG1 I-ARG1 I-ARG1 O", " ".join("O" * 8), "O O O O", "O O B-ARG1 O"]
    found = corpus_estimate(task.corpus_metrics[0], texts, columns_of(task.train))
    assert found.score == pytest.approx(100 * 2 * 2 / (3 + 6)) and found.low < found.score < found.high


def test_on_the_data_solutions_are_nearly_all_of_it(data):
    """Written spans are the data; tags lack the labels that are too rare, and lose nothing else."""
    for form, wanted in (("spans", 100.0), ("tags", 99.83)):
        task = make_task(
            "role_labelling", data=str(data / "train.jsonl.gz"), heldout=str(data / "dev.jsonl.gz"), form=form
        )
        assert len(task.train) == 40411 and len(task.heldout) == 4943
        solved = [p.columns["solution"] for p in task.heldout]
        found = task.corpus_metrics[0].statistics(solved, **columns_of(task.heldout))
        totals = [sum(row[i] for row in found) for i in range(3)]
        assert 100 * f1(*totals) == pytest.approx(wanted, abs=0.005)
        assert totals[2] == 9447  # 9550 spans, 84 of them parts of others, 19 the predicate's


# --- tags and texts -------------------------------------------------------------------------------------------------


def test_tags_and_spans_are_one_another():
    spans = [Span("A0", 0, 2), Span("A0", 2, 3), Span("C-A0", 4, 6)]
    tags = ["B-A0", "I-A0", "B-A0", "O", "B-C-A0", "I-C-A0", "O"]
    assert tags_of(spans, 7) == tags and spans_of(tags) == spans
    draw = random.Random(1)
    for _ in range(300):
        spans = random_spans(draw, 9)
        assert spans_of(tags_of(spans, 9)) == spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("I-A0 I-A0 O", [("A0", 0, 2)]),
        ("O I-A0 I-A1 I-A1", [("A0", 1, 2), ("A1", 2, 4)]),
        ("B-A0 O I-A0", [("A0", 0, 1), ("A0", 2, 3)]),
        ("B-A0 I-A1", [("A0", 0, 1), ("A1", 1, 2)]),
    ],
)
def test_tags_that_are_no_spans_are_repaired(tags, spans):
    assert spans_of(tags.split()) == [Span(*span) for span in spans]


def test_problems_of_both_forms():
    first, second, none, last = task_of().train
    assert first.prompt == "Ann sold the car that Bo liked ." and first.columns["marked"] == 1
    assert second.columns["solution"] == "O O B-ARG1 I-ARG1 B-R-ARG1 B-ARG0 O O"
    assert none.columns["solution"] == "O O O O" and last.columns["spans"] == [["ARG1", 0, 1]]
    assert task_of().labels == ("O", "B-ARG1", "I-ARG1", "B-ARG0", "I-ARG0", "B-R-ARG1", "I-R-ARG1")
    assert task_of(min_count=2).train[1].columns["solution"] == "O O B-ARG1 I-ARG1 O B-ARG0 O O"
    written = task_of("spans", rolesets=ROLES)
    assert written.labels == () and [p.columns["solution"] for p in written.train] == [
        "ARG0 0-0, ARG1 2-6", "ARG1 2-3, R-ARG1 4-4, ARG0 5-5", "none", "ARG1 0-0",
    ]  # fmt: skip
    assert written.train[3].prompt[0]["content"] == "0:It 1:was 2:sold 3:.\n2:sold sell.01 ARG0=seller; ARG1=thing sold"
    assert written.train[2].prompt[0]["content"].endswith("\n1:was be.03")  # a roleset without a description


@pytest.mark.parametrize("form", ["tags", "spans"])
def test_what_is_right_is_worth_1(form):
    task = task_of(form)
    assert [reward(task, problem, problem.columns["solution"]) for problem in task.train] == [1.0] * 4


@pytest.mark.parametrize(
    ("form", "text", "wanted"),
    [
        ("spans", "ARG1 2-6, ARG0 0-0", 1.0),  # in any order
        ("spans", "ARG0 0-0", 2 / 3),
        ("spans", "ARG0 0-0, ARG1 2-5", 1 / 2),
        ("spans", "none", 0.0),
        ("spans", "", 0.0),
        ("spans", "ARG0 0-0, ARG1 2-6,", 0.0),  # cut
        ("spans", "ARG0 0-0, ARG1 2-6 and so on", 0.0),
        ("spans", "ARG0 0-0, ARG0 0-0, ARG1 2-6", 0.0),  # twice the same words
        ("spans", "ARG0 0-0, ARG1 2-6, ARG2 3-4", 0.0),  # overlap
        ("spans", "ARG0 0-0, ARG1 6-2", 0.0),
        ("spans", "ARG0 0-0, ARG1 2-8", 0.0),  # outside
        ("spans", "ARG0 0-0, ARG1 2-6, V 1-1", 1.0),  # not scored
        ("spans", "ARG0 0-0, ARG1 2-" + "9" * 500, 0.0),
        ("spans", "none, ARG0 0-0", 0.0),
        ("tags", "B-ARG0 O B-ARG1 I-ARG1 I-ARG1 I-ARG1 I-ARG1", 0.0),  # a word too few
        ("tags", "B-ARG0 O B-ARG1 I-ARG1 I-ARG1 I-ARG1 I-ARG1 O O", 0.0),
        ("tags", "B-ARG0 O I-ARG1 I-ARG1 I-ARG1 I-ARG1 I-ARG1 O", 1.0),  # repaired
        ("tags", "B-ARG0 O B- I-ARG1 I-ARG1 I-ARG1 I-ARG1 O", 0.0),
        ("tags", "O O O O O O O O", 0.0),
    ],
)
def test_hostile_and_half_right_completions(form, text, wanted):
    task = task_of(form)
    assert reward(task, task.train[0], text) == pytest.approx(wanted)


def test_a_predicate_without_arguments_pays_for_silence_alone():
    task = task_of()
    assert reward(task, task.train[2], "O O O O") == 1.0 and reward(task, task.train[2], "B-ARG1 O O O") == 0.0
    written = task_of("spans")
    assert [reward(written, written.train[2], text) for text in ("none", "", "nobody", "ARG1 0-0")] == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_sentence_stays_on_one_side():
    rows = [{**SOLD, "id": f"s{i}"} for i in range(40)]
    task = make_task("role_labelling", data=rows, heldout=0.3)
    sides = [{p.columns["sentence"] for p in side} for side in (task.train, task.heldout)]
    assert all(sides) and not sides[0] & sides[1] and len(task.heldout) == 2 * len(sides[1])


def changed(**changes):
    return {**SOLD, **changes}


def of_prop(**changes):
    return changed(props=[{**SOLD["props"][0], **changes}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"]}, 'the row has no "props"'),
        (changed(tokens=[]), r'"tokens" is \[\]; it must be a list of words'),
        (changed(tokens=["a", " "]), '"tokens" is .*none of them empty'),
        (changed(tokens="a b"), "the row: \"tokens\" is 'a b'; it must be list"),
        (changed(props=[3]), "proposition 0 is 3; it must be an object"),
        (of_prop(predicate=8), "proposition 0: the predicate is word 8 of 8"),
        (of_prop(predicate=True), 'proposition 0: "predicate" is True; it must be int'),
        (of_prop(roleset=None), 'proposition 0: "roleset" is None'),
        (of_prop(args=[["ARG0", 0]]), r"proposition 0: argument \['ARG0', 0\]"),
        (of_prop(args=[["ARG0", 0, "1"]]), "proposition 0: .*it must be .label, start, end."),
        (of_prop(args=[["ARG0", 1, 1]]), "proposition 0: ARG0 is words 1 to 1 of 8"),
        (of_prop(args=[["ARG0", 7, 9]]), "proposition 0: ARG0 is words 7 to 9 of 8"),
        (of_prop(args=[["A B", 0, 1]]), "proposition 0: label .A B.; it must be text without spaces"),
        (of_prop(args=[["ARG0", 3, 5], ["ARG1", 0, 4]]), "proposition 0: ARG1 and ARG0 overlap at word 3"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, row, message):
    lines = json.dumps(WAS) + "\n\n" + json.dumps(row) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        with pytest.raises(InputError, match=f"{name}:3: {message}"):
            make_task("role_labelling", data=str(tmp_path / name), heldout=0)
    with pytest.raises(InputError, match=f"dataset: row 1: {message}"):
        task_of(rows=[WAS, row])


def test_other_bad_input(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(WAS) + "\n{")
    with pytest.raises(InputError, match=r"a.jsonl:2: not valid JSON"):
        make_task("role_labelling", data=str(tmp_path / "a.jsonl"))
    (tmp_path / "roles.jsonl").write_text('{"id": "a.01", "roles": [{"arg": "ARG0"}]}')
    with pytest.raises(InputError, match=r'roles.jsonl:1: the row has no "descr"'):
        task_of("spans", rolesets=str(tmp_path / "roles.jsonl"))
    with pytest.raises(InputError, match=r'form="tag": no such form of role_labelling\. Did you mean "tags"'):
        task_of("tag")

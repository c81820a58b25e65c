"""Translation: data, rewards on good, bad and hostile completions, metrics against sacrebleu and by hand, runs."""

from __future__ import annotations

import gzip
import importlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from logpi import api, build
from logpi.config import make_config, merge
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.evaluation import corpus_estimate, estimate
from logpi.resume_proof import digests
from logpi.tasks import make_task
from logpi.tasks.base import CorpusMetric
from logpi.tasks.problems import columns_of, prompt_key
from logpi.tasks.rewarding import as_completions, score
from logpi.tasks.translation import corpus_metric, in_target_language, sentence_bleu, sentence_chrf, sentence_mean

sacrebleu = pytest.importorskip("sacrebleu", reason="the extra [rewards] is not installed")
pytest.importorskip("py3langid", reason="the extra [rewards] is not installed")

PAIRS = [
    ("Good morning.", "Bonjour."), ("I am tired.", "Je suis fatigué."), ("I am tired.", "Je suis fatiguée."),
    ("Where is the station?", "Où est la gare ?"), ("He reads a book.", "Il lit un livre."),
    ("She is my sister.", "C'est ma sœur."), ("We have no time.", "Nous n'avons pas le temps."),
    ("It is raining.", "Il pleut."),
]  # fmt: skip


@pytest.fixture
def data() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "mt_tatoeba"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return folder


def rows(pairs=PAIRS):
    return [{"source": source, "target": target} for source, target in pairs]


def references_of(folder: Path, pair: str) -> list[dict]:
    return [json.loads(line) for line in gzip.open(folder / f"{pair}.dev.jsonl.gz", "rt", encoding="utf-8")]


# --- data ---------------------------------------------------------------------------------------------------------


def test_pairs_from_each_form_and_references_of_equal_sources(tmp_path):
    lines = "".join(f"{source}\t{target}\tsome attribution\n" for source, target in PAIRS)
    (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    held = [{"src": "I see.", "refs": ["Je vois.", "Je comprends."], "attr": ["a", "b"]}]
    (tmp_path / "held.jsonl").write_text(json.dumps(held[0]) + "\n")
    task = make_task(
        "translation", data=str(tmp_path / "pairs.tsv.gz"), target="fr", heldout=str(tmp_path / "held.jsonl")
    )
    assert [(p.prompt[0]["content"], p.columns["translation"]) for p in task.train] == PAIRS
    assert task.train[1].columns["references"] == ["Je suis fatigué.", "Je suis fatiguée."]
    assert task.train[2].columns["references"] == task.train[1].columns["references"]
    assert task.heldout[0].uid == len(PAIRS)
    assert task.heldout[0].columns == {
        "translation": "Je vois.", "references": ["Je vois.", "Je comprends."], "target_language": "fr"
    }  # fmt: skip
    assert make_task("translation", data=rows(), target="fr", heldout=2).train
    asked = make_task("translation", data=rows(), target="fr", template="French: {source}").train[0]
    assert asked.prompt == [{"role": "user", "content": "French: Good morning."}]


def test_rows_with_the_same_source_stay_on_one_side():
    task = make_task("translation", data=rows(PAIRS * 3), target="fr", heldout=0.4)
    sides = [{prompt_key(problem) for problem in side} for side in (task.train, task.heldout)]
    assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize("pair", ["en-fr", "en-de", "en-zh"])
def test_the_development_data_can_be_read(data, pair):
    files = [str(data / f"{pair}.{name}.gz") for name in ("train.tsv", "dev.jsonl")]
    task = make_task("translation", data=files[0], target=pair[-2:], heldout=files[1])
    assert len(task.train) == (22356 if pair == "en-zh" else 60000) and len(task.heldout) == 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "Yes.\tOui.\nNo. Non.\n", r"a.tsv:2: 'No. Non.' is no pair; each line is source, a tab, target"),
        ("a.tsv", "Yes.\tOui.\n\nNo.\t \tCC\n", r"a.tsv:3: .* is no pair"),
        ("a.tsv", "\n", r"a.tsv: holds no rows"),
        ("a.jsonl", '{"src": "Yes.", "refs": ["Oui."]}\n{"src": "No.", "refs": []}', r"a.jsonl:2: row 1: source 'No.'"),
        ("a.jsonl", '{"src": "Yes.", "refs": ["Oui.", 3]}', r"a.jsonl:1: row 0: .* both must be text"),
        ("a.jsonl", '{"src": "Yes.", "refs": "Oui."}', r'a.jsonl:1: row 0: "refs" is .* it must be list'),
        ("a.jsonl", '{"src": " ", "refs": ["Oui."]}', r"a.jsonl:1: row 0: source ''"),
        ("a.jsonl", '{"source": "Yes."}', r'a.jsonl:1: row 0 has no column "target"'),
        ("a.jsonl", '{"sorce": "Yes.", "target": "Oui."}', r'no column "source".*Did you mean "sorce"'),
        ("a.jsonl", '{"src": "Yes."\n', r"a.jsonl:1: not valid JSON"),
        ("a.tsv.gz", "Yes.\tOui.\n", r"a.tsv.gz: not a whole gzip file"),
    ],
)
def test_bad_files_are_named_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        make_task("translation", data=str(tmp_path / name), target="fr", heldout=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "french"}, 'target="french": no known language code'),
        ({"target": "fr", "reward": "crf"}, 'reward="crf": no such reward of translation. Did you mean "chrf"'),
        ({"target": "fr", "template": "Translate"}, r"has no {source}"),
        ({}, 'needs the option "target"'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make_task("translation", data=rows(), **options)


def test_a_missing_package_is_said_with_the_remedy(monkeypatch):
    def without(name, original=importlib.import_module):
        if name == "py3langid":
            raise ImportError(name)
        return original(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InputError, match=r'scoring translations needs the package "py3langid".*logpi\[rewards\]'):
        make_task("translation", data=rows(), target="sv")


# --- rewards ------------------------------------------------------------------------------------------------------

REFERENCES = ["Je préfère le café au thé.", "J'aime mieux le café que le thé."]
GOOD = [*REFERENCES, " Je préfère le café au thé.\n"]
WORSE = ["Je préfère le thé au café.", "Je préfère le café.", "Je préfère le café au thé au thé au thé au thé."]
HOSTILE = [
    "I prefer coffee to tea.",  # the source, copied
    "Ich trinke lieber Kaffee als Tee.",  # good, in another language
    "Prefiero el café al té.",  # another language that shares letters with the reference
    "", " ", "\n", "é", "....", "????????", "\x00\x00", "\ud7ff" * 50, "🙂" * 20, "é" * 10_000, "12 345",
    "coffee coffee coffee tea tea", "<|end|>", "我更喜欢咖啡。",
]  # fmt: skip


def given(function, texts, references=REFERENCES, code="fr"):
    return function(texts, [references] * len(texts), [code] * len(texts))


@pytest.mark.parametrize("function", [sentence_chrf, sentence_bleu, sentence_mean])
def test_rewards_order_good_worse_and_hostile(function):
    assert given(function, GOOD) == pytest.approx([1.0] * len(GOOD), abs=1e-12)
    assert max(given(function, GOOD)) <= 1.0
    assert all(0.1 < value < 0.95 for value in given(function, WORSE))
    assert given(function, HOSTILE) == [0.0] * len(HOSTILE)


def test_rewards_are_sacrebleus_sentence_scores():
    for text in WORSE:
        chrf = sacrebleu.sentence_chrf(text, REFERENCES).score / 100
        bleu = sacrebleu.sentence_bleu(text, REFERENCES).score / 100
        assert given(sentence_chrf, [text]) == [chrf] and given(sentence_bleu, [text]) == [bleu]
        assert given(sentence_mean, [text]) == [(chrf + bleu) / 2]


@pytest.mark.parametrize("function", [sentence_chrf, sentence_bleu, sentence_mean])
def test_a_beginning_is_scored_in_any_language(function):
    """ "Tom" alone is no French, but a French sentence may go on from it."""
    texts, refs, code = ["Tom", "Tom"], [["Tom est grand."]] * 2, ["fr"] * 2
    whole, begun = function(texts, refs, code, partial=[False, True])
    assert whole == 0.0 and 0.0 < begun < 0.5


def test_a_reference_counts_whatever_language_it_looks_like():
    assert given(in_target_language, ["Tom!", "OK."], ["Tom!"]) == [1.0, 0.0]
    assert given(sentence_chrf, ["Tom!"], ["Tom!"]) == pytest.approx([1.0])


@pytest.mark.parametrize("pair", ["en-fr", "en-de", "en-zh"])
def test_languages_are_told_apart(data, pair):
    """On the development side: 99.5 % of the references pass, 0.5 % of the sources and of other languages do not."""
    identified = importlib.import_module("logpi.tasks.translation")._identifier(pair[-2:]).classify
    for other in ("en-fr", "en-de", "en-zh"):
        held = references_of(data, other)
        found = np.mean([identified(text)[0] == pair[-2:] for row in held for text in row["refs"]])
        copied = np.mean([identified(row["src"])[0] == pair[-2:] for row in held])
        print(f"{pair}: references of {other} {found:.4f}, sources {copied:.4f}")
        assert (found >= 0.995 if other == pair else found <= 0.005) and copied <= 0.005


# --- metrics ------------------------------------------------------------------------------------------------------


def corrupted(row: dict, place: int) -> str:
    """Return a made-up translation: a reference, at places cut short or with a word twice."""
    words = row["refs"][place % len(row["refs"])].split(" ")
    return " ".join(words[: -(place % 3)] if place % 3 and len(words) > 3 else [words[0], *words])


@pytest.mark.parametrize("pair", ["en-fr", "en-zh"])
def test_corpus_metrics_are_sacrebleus(data, pair):
    held, target = references_of(data, pair)[:300], pair[-2:]
    texts = [corrupted(row, place) for place, row in enumerate(held)]
    longest = max(len(row["refs"]) for row in held)
    streams = [[row["refs"][i] if i < len(row["refs"]) else None for row in held] for i in range(longest)]
    wanted = {
        "bleu": sacrebleu.corpus_bleu(texts, streams, tokenize="zh" if target == "zh" else "13a"),
        "chrf2": sacrebleu.corpus_chrf(texts, streams),
    }
    task = make_task("translation", data=rows(), target=target)
    for metric in task.corpus_metrics:
        found = corpus_estimate(metric, texts, {"references": [row["refs"] for row in held]})
        assert found.score == pytest.approx(wanted[metric.name].score, abs=1e-9) and found.n == 300
        assert found.low < found.score < found.high
    signatures = [metric.signature() for metric in task.corpus_metrics]
    assert f"tok:{'zh' if target == 'zh' else '13a'}" in signatures[0] and signatures[0].startswith("nrefs:var|")
    assert "nc:6|nw:0" in signatures[1]


def test_bleu_by_hand():
    """BLEU = min(1, exp(1 − r/c)) · (Π p_n)^(1/4), counts clipped by the largest of the references (Papineni 2002)."""
    texts = ["the cat sat on the the mat", "a dog barks at the tall man now"]
    references = [
        ["the cat sat on the mat", "on the mat sat the cat today , the cat"],
        ["a dog barks at the man now"],
    ]
    right, all_, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for text, refs in zip(texts, references):
        words = text.split()
        ours += len(words)
        theirs += min((len(ref.split()) for ref in refs), key=lambda length: (abs(length - len(words)), length))
        for n in range(1, 5):
            grams = [Counter(zip(*(t.split()[i:] for i in range(n)))) for t in (text, *refs)]
            allowed = grams[1]
            for more in grams[2:]:
                allowed = allowed | more
            right[n - 1] += sum((grams[0] & allowed).values())
            all_[n - 1] += sum(grams[0].values())
    wanted = 100 * min(1.0, math.exp(1 - theirs / ours)) * math.prod(r / a for r, a in zip(right, all_)) ** 0.25
    metric = corpus_metric("bleu", sacrebleu.BLEU())
    assert 20 < wanted < 80
    assert corpus_estimate(metric, texts, {"references": references}).score == pytest.approx(wanted, rel=1e-12)


def test_the_bootstrap_of_a_mean_is_its_normal_interval():
    values = [float(value) for value in np.sin(np.arange(400))]
    mean = CorpusMetric(
        "mean", lambda completions, **_: [[v, 1.0] for v in completions], lambda s: s[0] / s[1], lambda: ""
    )
    found, wanted = corpus_estimate(mean, values, {}), estimate(values)  # type: ignore[arg-type]
    assert found.score == pytest.approx(wanted.score) and found.n == 400
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.08 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.08 * width)
    assert found == corpus_estimate(mean, values, {})  # type: ignore[arg-type]
    assert corpus_estimate(mean, [], {}).n == 0


def test_the_score_is_corpus_bleu_and_texts_have_their_own():
    task = make_task("translation", data=rows(), target="fr", heldout=2)
    problems = task.heldout
    prompts = [problem.prompt for problem in problems]
    texts = [problem.columns["references"][0] for problem in problems]
    completions = as_completions(prompts, texts)
    found = score(task.metrics, prompts, completions, [[0]] * len(texts), columns_of(problems)).by_name
    assert set(found) == {"sentence_mean", "in_target_language"}
    assert corpus_estimate(task.corpus_metrics[0], completions, columns_of(problems)).score == pytest.approx(100)


# --- runs ---------------------------------------------------------------------------------------------------------

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def sft(**changes):
    values = {
        "task": {"name": "translation", "data": rows(), "target": "fr", "heldout": rows([("Yes.", "Oui.")])},
        "sft": {"batch_size": 4, "new": {"vocab_size": 300, "context_length": 64, "shape": SHAPE}},
        "threads": 1, "policy": {"dtype": "float32"}, "rollout": {"max_completion_length": 8},
        "learner": {"learning_rate": 5e-3}, "evaluation": {"every_steps": 2, "full_report": False},
        "checkpoint": {"every_steps": 2}, "max_steps": 4,
    }  # fmt: skip
    return make_config(merge(values, changes))


def run(config, folder):
    return api.run(config, folder=folder, observer=make_observer(json=True))


def test_a_new_network_is_a_function_of_seed_and_data_and_its_run_goes_on_exactly(tmp_path):
    whole = run(sft(), tmp_path / "whole")
    run(sft(max_steps=2), tmp_path / "parts")
    assert digests(tmp_path / "whole") != digests(tmp_path / "parts")
    run(sft(), tmp_path / "parts")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    tokenizer = json.loads((tmp_path / "whole" / "start" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 300
    said = [text for problem in build.task_of(sft()).train[:2] for text in build._texts(problem, "translation")]
    assert said == ["Good morning.", "Bonjour.", "I am tired.", "Je suis fatigué."]
    assert set(whole["evaluation"]["after"]["metrics"]) == {
        "loss", "perplexity", "bleu", "chrf2", "sentence_mean", "in_target_language"
    }  # fmt: skip
    assert whole["evaluation"]["after"]["signatures"]["bleu"].startswith("nrefs:1|")


def test_a_full_report_compares_with_the_network_that_the_run_began_with(tmp_path):
    summary = run(sft(evaluation={"full_report": True}), tmp_path / "run")
    assert summary["evaluation"]["after"]["kl_to_start"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"model": "x"}}, "policy.model and sft.new both say what the run begins with"),
        ({"policy": {"lora": {}}}, "policy.lora adapts weights that are trained already"),
        ({"sft": {"new": {"vocabsize": 300}}}, 'unknown key "sft.new.vocabsize". Did you mean "vocab_size"'),
        ({"sft": {"new": {"shape": {"hidden_size": 34}}}}, "hidden_size=34 is no multiple of"),
        ({"sft": {"dropout": 0.0019}}, "dropout=0.0019 would leave nothing out"),
    ],
)
def test_a_new_network_does_not_go_with_another(changes, message):
    with pytest.raises(InputError) as error:
        sft(**changes)
    assert message in str(error.value)


def test_a_file_is_scored_whole_and_alone(tmp_path):
    summary = run(sft(), tmp_path / "run")
    (tmp_path / "other.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS[:5]))
    assert api.evaluate_run(summary["run"])["n"] == 1
    assert api.evaluate_run(summary["run"], data=str(tmp_path / "other.tsv"))["n"] == 5


def test_the_recipes_run_on_files_of_ones_own(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS * 3))
    task = ["--data", "pairs.tsv", "--task.heldout", "2", "--threads", "1", "--smoke"]
    assert call("sft", "translation-sft", *task, "--run", "runs/translation-sft")[0] == 0
    code, _, err = call("train", "translation", *task, "--run", "runs/translation")
    assert code == 0, err
    summary = json.loads(Path("runs/translation/summary.json").read_text())
    assert summary["evaluation"]["after"]["metrics"].keys() >= {"bleu", "chrf2"} and summary["samples"]

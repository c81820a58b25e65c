"""An encoder as a policy: against Hugging Face's own forward and loss, enumeration, bit for bit against its sampler."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from test_role_labelling import SOLD, WAS
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForTokenClassification,
)

from logpi import api
from logpi.config import make_config, merge
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.policies.base import Reference
from logpi.policies.encoder_loading import load_encoder
from logpi.policies.untrained_encoder import MASK, learn_word_tokenizer, write_untrained_encoder
from logpi.randomness import Stream
from logpi.resume_proof import digests
from logpi.rollout.engine import Sampling, TokenPrompt
from logpi.rollout.masking import masked
from logpi.rollout.tagging import tag
from logpi.supervised import MAXIMUM_LIKELIHOOD, Demonstration, Demonstrations, Hidden, pieces
from logpi.tasks.base import Problem, Task
from logpi.trajectory import make_batch

WORDS = [
    "Ann",
    "sold",
    "the",
    "car",
    "that",
    "Bo",
    "liked",
    ",",
    "and",
    "it",
    "was",
    "n't",
    "unbelievably",
    "cheap",
    ".",
]
LABELS = ("O", "B-A", "I-A", "B-B", "I-B")
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a tagger whose words have one token and more."""
    path = tmp_path_factory.mktemp("tagger") / "new"
    path.mkdir()
    options = {"vocab_size": 290, "context": 128, "shape": SHAPE | {"initializer_range": 0.2}, "seed": 0}
    write_untrained_encoder(path, [" ".join(WORDS)] * 9, labels=LABELS, **options)
    return str(path)


def sentences(policy, lengths):
    """Return sentences of these numbers of words, another one marked in each."""
    return [policy.sentence((WORDS * 9)[n : n + n], n // 2) for n in lengths]


def drawn(policy, lengths=(1, 2, 7, 40, 3, 24), num_generations=5, **options):
    asked = [TokenPrompt(uid, sentence) for uid, sentence in enumerate(sentences(policy, lengths))]
    return tag(policy, asked, num_generations, Sampling(0, **options))


# --- the forward --------------------------------------------------------------------------------------------------


def padded(policy, lengths):
    """Return sentences as Hugging Face reads them: padded, with a mask."""
    found = sentences(policy, lengths)
    rows = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
    attend = torch.arange(rows.shape[1]) < torch.tensor([len(s) for s in found])[:, None]
    return found, {"input_ids": rows[..., 0], "token_type_ids": rows[..., 1], "attention_mask": attend.long()}


@pytest.mark.parametrize("kind", ["new", "bert"])
def test_log_probs_are_those_of_hugging_faces_forward(kind, folder, tmp_path):
    if kind == "bert":
        folder = write_bert(tmp_path)
    policy = load_encoder(folder, LABELS, dtype="float64")
    lengths = (1, 9, 30, 4)
    found, padding = padded(policy, lengths)
    theirs = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float64).eval()
    wanted = torch.log_softmax(theirs(**padding).logits, -1)
    for row, sentence in enumerate(found):
        asked = sentence[:, 2].nonzero()[:, 0]
        actions = torch.arange(len(asked)) % len(LABELS)
        batch = make_batch([Demonstration(0, sentence, actions).trajectory()])
        ours = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs, with_entropy=True)
        torch.testing.assert_close(ours.log_probs[0], wanted[row, asked, actions], rtol=0, atol=1e-12)
        entropy = -(wanted[row, asked].exp() * wanted[row, asked]).sum(-1)
        torch.testing.assert_close(ours.entropies[0], entropy, rtol=0, atol=1e-12)
    assert theirs.config.id2label == dict(enumerate(LABELS))


def write_bert(path):
    """Write Hugging Face's BERT: absolute positions, and a classifier of its own."""
    options = dict(max_position_embeddings=128, num_labels=5, initializer_range=0.2, **SHAPE)
    tokenizer = learn_word_tokenizer([" ".join(WORDS)], 280)
    config = BertConfig(vocab_size=len(tokenizer), id2label=dict(enumerate(LABELS)), **options)
    BertForTokenClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_the_mark_and_the_words_around_count(folder):
    policy = load_encoder(folder, LABELS, dtype="float64")
    logits = [policy.logits(policy.states([policy.sentence(WORDS, marked)])) for marked in (0, 3, None)]
    assert all(float((a - b).abs().min(1).values.min()) > 0 for a, b in itertools.combinations(logits, 2))


def test_words_are_asked_at_their_first_token(folder):
    policy = load_encoder(folder, LABELS, dtype="float64")
    sentence = policy.sentence(WORDS, 12)
    pieces_of = [policy.tokenizer([word], is_split_into_words=True)["input_ids"] for word in WORDS]
    assert sentence[:, 0].tolist() == [token for piece in pieces_of for token in piece]
    assert sentence[:, 2].tolist() == [int(not i) for piece in pieces_of for i in range(len(piece))]
    assert sentence[:, 1].tolist() == [int(w == 12) for w, piece in enumerate(pieces_of) for _ in piece]
    assert len(policy.tokenizer(["qzx"], is_split_into_words=True)["input_ids"]) > 1


def test_text_and_words_have_the_same_tokens():
    tokenizer = learn_word_tokenizer(["Ann sold it, and Bo (her friend) cried."], 300)
    words = ["Ann", "sold", "it", ",", "and", "Bo", "(", "her", "friend", ")", "cried", "."]
    text = tokenizer("Ann sold it, and Bo (her friend) cried.")["input_ids"]
    assert text == tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]


# --- the sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probs_are_the_learners_to_the_last_bit(dtype, temperature, folder):
    if dtype == "bfloat16" and not models.NATIVE_BF16:
        pytest.skip("this processor multiplies no bfloat16")
    transform = replace(models.Transform(), temperature=temperature)
    policy = load_encoder(folder, LABELS, dtype=dtype, transform=transform)
    trajectories = drawn(policy)
    batch = make_batch(models.rewarded(trajectories))
    alone = torch.tensor([len(batch) - 1])
    for rows in (torch.arange(len(batch)), torch.arange(len(batch)).flip(0)[:13], alone):
        part = batch.select(rows)
        with torch.enable_grad():
            out = policy.evaluate(part.actions, part.mask, part.truncated, part.inputs)
        assert torch.equal(out.log_probs, part.behavior_log_probs)
    entropies = torch.cat([t.entropies for t in trajectories])
    out = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs, with_entropy=True)
    assert torch.equal(out.entropies[batch.mask], entropies)


def test_a_tagging_does_not_depend_on_its_company(folder):
    policy = load_encoder(folder, LABELS, dtype="float32")
    together = drawn(policy, num_generations=3, seed=4)
    asked = sentences(policy, (1, 2, 7, 40, 3, 24))
    alone = [
        t for uid, s in reversed(list(enumerate(asked))) for t in tag(policy, [TokenPrompt(uid, s)], 3, Sampling(0, 4))
    ]
    for t in alone:
        (same,) = [o for o in together if (o.prompt_uid, o.sample) == (t.prompt_uid, t.sample)]
        assert torch.equal(same.actions, t.actions) and torch.equal(same.behavior_log_probs, t.behavior_log_probs)
    late = tag(policy, [TokenPrompt(2, asked[2], first_sample=1)], 2, Sampling(0, 4))
    assert [t.sample for t in late] == [1, 2] and torch.equal(late[0].actions, together[7].actions)
    others = tag(policy, [TokenPrompt(3, asked[3])], 1, Sampling(0, 4), step=1)
    assert not torch.equal(others[0].actions, together[9].actions)


def test_labels_are_drawn_as_often_as_they_are_likely(folder):
    policy = load_encoder(folder, LABELS, dtype="float64")
    num = 20000
    (sentence,) = sentences(policy, (2,))
    found = tag(policy, [TokenPrompt(0, sentence)], num, Sampling(0))
    pairs = torch.stack([t.actions for t in found])
    shares = torch.zeros(5, 5)
    for a, b in pairs.tolist():
        shares[a, b] += 1 / num
    single = torch.softmax(policy.logits(policy.states([sentence])), -1).float().detach()
    wanted = single[0][:, None] * single[1]  # independent given the sentence
    assert float((shares - wanted).abs().max()) < 4 * 0.5 / num**0.5
    assert float((shares - wanted.T).abs().max()) > 0.02  # the two words differ
    greedy = tag(policy, [TokenPrompt(0, sentence)], 1, Sampling(0, greedy=True))[0]
    assert greedy.actions.tolist() == single.argmax(-1).tolist()


# --- gradients ----------------------------------------------------------------------------------------------------


def test_the_gradient_of_maximum_likelihood_is_hugging_faces(folder):
    policy = load_encoder(folder, LABELS, dtype="float64")
    found, padding = padded(policy, (3, 9, 1))
    draws = torch.Generator().manual_seed(0)
    given = [Demonstration(i, s, torch.randint(5, (int(s[:, 2].sum()),), generator=draws)) for i, s in enumerate(found)]
    labels = torch.full(padding["input_ids"].shape, -100)
    for row, demonstration in enumerate(given):
        labels[row, found[row][:, 2].nonzero()[:, 0]] = demonstration.completion
    theirs = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float64).eval()
    loss = theirs(**padding, labels=labels).loss
    loss.backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    trajectories = [d.trajectory(group=i) for i, d in enumerate(given)]
    for micro_batch_tokens in (10**9, 1):
        ours, found_gradient = models.gradient(
            policy, trajectories, MAXIMUM_LIKELIHOOD, micro_batch_tokens=micro_batch_tokens
        )
        assert models.relative_error(found_gradient, wanted) < 1e-10
        assert ours == pytest.approx(float(loss.detach()), rel=1e-12)


def test_the_policy_gradient_averages_to_the_exact_one(folder):
    """Two words, five labels: RLOO's gradient over every group of two taggings, weighted with its probability, is the
    gradient of J = Σ π(tagging) R(tagging)."""
    policy = load_encoder(folder, LABELS, dtype="float64")
    (sentence,) = sentences(policy, (2,))
    taggings = [torch.tensor(pair) for pair in itertools.product(range(5), repeat=2)]
    rewards = [float(i * 7 % 11) / 5 + (a == b) for i, (a, b) in enumerate(map(torch.Tensor.tolist, taggings))]
    log_pi = torch.log_softmax(policy.logits(policy.states([sentence])), -1)
    j = sum(log_pi[[0, 1], actions].sum().exp() * r for actions, r in zip(taggings, rewards, strict=True))
    exact = dict(
        zip(policy.trainable_parameters(), torch.autograd.grad(j, list(policy.trainable_parameters().values())))
    )
    (one,) = tag(policy, [TokenPrompt(0, sentence)], 1, Sampling(0))

    def trajectory(i, sample):
        log_probs = log_pi[[0, 1], taggings[i]].detach()
        reward = torch.tensor([0.0, rewards[i]], dtype=torch.float64)
        return replace(one, actions=taggings[i], behavior_log_probs=log_probs, sample=sample, rewards=reward)

    mean = {name: torch.zeros_like(value) for name, value in exact.items()}
    for a, b in itertools.combinations_with_replacement(range(len(taggings)), 2):
        group = [trajectory(a, 0), trajectory(b, 1)]
        chance = float(torch.stack([t.behavior_log_probs.sum() for t in group]).sum().exp()) * (1 if a == b else 2)
        if rewards[a] != rewards[b]:
            _, found = models.gradient(policy, group, "rloo")
            for name, value in found.items():
                mean[name] -= chance * value  # the loss is −J
    assert models.relative_error(mean, exact) < 1e-9


def test_kl_is_exact_and_its_reference_stays(folder):
    policy = load_encoder(folder, LABELS, dtype="float64")
    frozen = policy.frozen_copy()
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.03 * torch.sin(torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)))
    (sentence,) = sentences(policy, (7,))
    (t,) = tag(policy, [TokenPrompt(0, sentence)], 1, Sampling(0))
    batch = make_batch(models.rewarded([t]))
    before = frozen.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs)
    against = Reference(frozen, before.states[None])
    found = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs, against).kl_exact[0]
    p, q = (torch.log_softmax(x.logits(x.states([sentence])), -1) for x in (policy, frozen))
    torch.testing.assert_close(found, (p.exp() * (p - q)).sum(-1), rtol=1e-9, atol=1e-12)
    assert float(found.min()) > 0


# --- masked tokens ------------------------------------------------------------------------------------------------


def test_15_percent_are_masked_80_10_10():
    tokens = torch.full((200_000,), 7)
    seen, is_asked = masked(tokens, 1, 500, seed=0, step=3, uid=5)
    assert float(is_asked.double().mean()) == pytest.approx(0.15, abs=0.003)
    shown = seen[is_asked]
    assert float((shown == 1).double().mean()) == pytest.approx(0.8 + 0.1 / 500, abs=0.01)
    assert float((shown == 7).double().mean()) == pytest.approx(0.1 + 0.1 / 500, abs=0.006)
    others = shown[(shown != 1) & (shown != 7)]
    assert others.min() == 0 and others.max() == 499 and len(others.unique()) > 490
    assert torch.equal(seen[~is_asked], tokens[~is_asked])


def test_masks_are_keyed_and_never_none():
    tokens = torch.arange(40)
    keyed = [
        masked(tokens, 1, 50, seed=s, step=t, uid=u)[1]
        for s, t, u in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert torch.equal(keyed[0], keyed[1]) and all(not torch.equal(keyed[0], k) for k in keyed[2:])
    for uid in range(50):
        assert masked(torch.tensor([7]), 1, 50, seed=0, step=0, uid=uid)[1].tolist() == [True]
    assert Stream.MASKING == 9


def test_each_step_masks_other_tokens_and_the_held_out_ones_stay():
    piece = Hidden(3, torch.arange(40), mask_id=1, vocab_size=50, seed=0)
    policy: Any = None
    task = Task("text", [Problem(0, "a")], [Problem(1, "b")])
    given = Demonstrations(policy, task, lambda _: [piece], seed=0, batch_size=1, micro_batch_tokens=100)
    steps = [given.sample(step, 0, range(1))[0] for step in (0, 1, 1)]
    assert not torch.equal(steps[0].inputs, steps[1].inputs) and torch.equal(steps[1].inputs, steps[2].inputs)
    for t in steps:
        assert torch.equal(t.actions, piece.tokens[t.inputs[:, 2] == 1]) and t.prompt_uid == 3


def test_masked_tokens_have_hugging_faces_loss(tmp_path):
    options = {"vocab_size": 290, "context": 64, "shape": SHAPE | {"initializer_range": 0.2}, "seed": 0}
    write_untrained_encoder(tmp_path, [" ".join(WORDS)] * 9, labels=(), **options)
    policy = load_encoder(str(tmp_path), dtype="float64")
    documents = [Problem(0, " ".join(WORDS * 3)), Problem(1, "Ann sold it."), Problem(2, "Bo")]
    found = pieces(documents, policy, 32, seed=0)
    assert [len(piece.tokens) for piece in found if isinstance(piece, Hidden)][:1] == [32]
    assert torch.cat([p.tokens for p in found[:-2]]).tolist() == policy.tokenizer(" ".join(WORDS * 3))["input_ids"]
    given = [piece.of_step(1) for piece in found]
    rows = torch.nn.utils.rnn.pad_sequence([d.prompt for d in given], batch_first=True)
    labels = torch.full(rows.shape[:2], -100)
    for row, (demonstration, piece) in enumerate(zip(given, found)):
        asked = demonstration.prompt[:, 2].nonzero()[:, 0]
        labels[row, asked] = piece.tokens[asked]
        is_same = demonstration.prompt[:, 0] == piece.tokens
        assert bool(is_same[demonstration.prompt[:, 2] == 0].all())
    attend = torch.arange(rows.shape[1]) < torch.tensor([len(d.prompt) for d in given])[:, None]
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    wanted = theirs(input_ids=rows[..., 0], attention_mask=attend.long(), labels=labels).loss
    wanted.backward()
    loss, gradient = models.gradient(policy, [d.trajectory(group=i) for i, d in enumerate(given)], MAXIMUM_LIKELIHOOD)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-10)
    assert models.relative_error(gradient, {name: p.grad for name, p in theirs.named_parameters()}) < 1e-9


# --- what can't be used -------------------------------------------------------------------------------------------


def test_encoders_that_do_something_else_are_refused(folder, tmp_path):
    tokenizer = learn_word_tokenizer([" ".join(WORDS)], 280)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        type_vocab_size=2,
        relative_attention=True,
        pos_att_type=["c2p"],
        **SHAPE | {"initializer_range": 0.3},
    )
    DebertaV2ForTokenClassification(config).save_pretrained(tmp_path / "deberta")
    tokenizer.save_pretrained(tmp_path / "deberta")
    with pytest.raises(InputError, match=r"deberta.* logits differ from the model's own by"):
        load_encoder(str(tmp_path / "deberta"), ("LABEL_0", "LABEL_1"), dtype="float32")
    config = BertConfig(vocab_size=len(tokenizer), type_vocab_size=1, id2label=dict(enumerate(LABELS)), **SHAPE)
    BertForTokenClassification(config).save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    with pytest.raises(InputError, match="has one token type alone, so no word can be marked"):
        load_encoder(str(tmp_path / "one"), LABELS, dtype="float32")
    with pytest.raises(InputError, match=r'has no label "I-C" \(1 of the task\'s 2 are missing\)'):
        load_encoder(folder, ("O", "I-C"), dtype="float32")
    with pytest.raises(InputError, match="is no encoder that can be loaded"):
        load_encoder(models.write(tmp_path / "llama", "llama"), (), dtype="float32")
    policy = load_encoder(folder, LABELS, dtype="float32")
    with pytest.raises(InputError, match=r"Ann sold .* has \d+ tokens; the model's context is 128; shorten or remove"):
        policy.sentence(WORDS * 20)
    with pytest.raises(InputError, match=r"word 1, .* has no token; repair or remove the row"):
        policy.sentence(["a", "\u2028"])


# --- runs ---------------------------------------------------------------------------------------------------------


def rows(num=24):
    return [{**row, "id": f"{row['id']}-{i}"} for i in range(num // 2) for row in (SOLD, WAS)]


def write_data(path):
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (path / "dev.jsonl").write_text("".join(json.dumps({**row, "id": row["id"] + "d"}) + "\n" for row in rows(4)))
    (path / "text.jsonl").write_text("".join(json.dumps({"text": f"{i} {' '.join(WORDS)}"}) + "\n" for i in range(20)))


COMMON = {
    "threads": 1, "policy": {"kind": "encoder", "dtype": "float32"}, "learner": {"learning_rate": 5e-3},
    "evaluation": {"every_steps": 2, "full_report": False}, "checkpoint": {"every_steps": 2}, "max_steps": 4,
}  # fmt: skip


def config_of(path, command, **changes):
    task = {"name": "role_labelling", "data": f"{path}/train.jsonl", "heldout": f"{path}/dev.jsonl", "min_count": 1}
    new = {"vocab_size": 300, "shape": SHAPE}
    sections = {
        "pretrain": {"task": {"name": "text", "data": f"{path}/text.jsonl"}, "pretrain": {"batch_size": 4, **new}},
        "sft": {"task": task, "sft": {"batch_size": 8, "new": new}},
        "train": {"task": task, "rollout": {"num_prompts": 4, "num_generations": 4}},
    }
    return make_config(merge(merge(COMMON, sections[command]), changes))


def run(config, folder):
    return api.run(config, folder=folder, observer=make_observer(json=True))


def without_new(path):
    return {"policy": {"model": f"{path}/read/final"}, "sft": {"new": None}}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Return a folder in which an encoder has read, imitated, and been paid."""
    path = tmp_path_factory.mktemp("chain")
    write_data(path)
    read = run(config_of(path, "pretrain"), path / "read")
    imitated = run(config_of(path, "sft", max_steps=60, **without_new(path)), path / "imitated")
    paid = run(config_of(path, "train", policy={"model": f"{path}/imitated/final"}), path / "paid")
    return path, read, imitated, paid


def test_an_encoder_reads_imitates_and_is_paid(chain):
    path, read, imitated, paid = chain
    losses = [read["evaluation"][when]["metrics"]["loss"]["score"] for when in ("after", "before")]
    assert losses[0] < losses[1]
    assert imitated["evaluation"]["after"]["metrics"]["f1"]["score"] > 95
    assert imitated["evaluation"]["before"]["metrics"]["f1"]["score"] < 50
    for summary in (read, imitated, paid):
        assert summary["ledger"]["as_planned"]
    found = [json.loads(line) for line in (path / "paid" / "metrics.jsonl").read_text().splitlines()]
    assert [row["mismatch/max"] for row in found] == [0.0] * 4
    assert api.evaluate_run(str(path / "paid"))["score"] == paid["evaluation"]["after"]["score"]
    assert api.evaluate_run(str(path / "imitated"), data=str(path / "dev.jsonl"))["n"] == 8
    theirs = AutoModelForTokenClassification.from_pretrained(path / "paid" / "final")
    assert (
        theirs.config.id2label[0] == "O" and AutoTokenizer.from_pretrained(path / "paid" / "final").mask_token == MASK
    )
    assert AutoModelForMaskedLM.from_pretrained(path / "read" / "final").config.model_type == "nomic_bert"
    with pytest.raises(InputError, match="holds an encoder, which completes no prompt"):
        api.sample_run(str(path / "paid"), "x")


@pytest.mark.parametrize("command", ["pretrain", "sft", "train"])
def test_runs_go_on_exactly(command, chain, tmp_path):
    path, *_ = chain
    changes = {"policy": {"model": f"{path}/imitated/final"}} if command == "train" else {}
    run(config_of(path, command, **changes), tmp_path / "whole")
    run(config_of(path, command, max_steps=2, **changes), tmp_path / "parts")
    assert digests(tmp_path / "whole") != digests(tmp_path / "parts")
    run(config_of(path, command, **changes), tmp_path / "parts")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("train", {"policy": {"kind": "causal_lm", "model": "x"}}, 'is for a tagger: set policy.kind = "encoder"'),
        ("train", {"policy": {"model": "x"}, "task": {"form": "spans"}}, "has no labels to tag words with"),
        ("train", {"policy": {"model": "x"}, "algorithm": {"name": "ppo"}}, "an encoder has none; pick rloo"),
        ("train", {"policy": {"model": "x", "lora": {}}}, "an encoder is trained whole"),
        ("pretrain", {"policy": {"model": "x"}, "pretrain": {"shape": None}}, "has the shape of pretrain.shape"),
        ("sft", {"policy": {"kind": "causal_lm"}}, 'is for a tagger: set policy.kind = "encoder"'),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_loads(command, changes, message, tmp_path):
    write_data(tmp_path)
    with pytest.raises(InputError) as error:
        run(config_of(tmp_path, command, **changes), tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_the_recipes_run_on_files_of_ones_own(tmp_path, monkeypatch, call):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = ["--data", "train.jsonl", "--threads", "1", "--smoke"]
    held = ["--task.heldout", "dev.jsonl", "--task.min-count", "1"]
    assert call("pretrain", "srl-pretrain", "--data", "text.jsonl", "--threads", "1", "--smoke")[0] == 0
    code, _, err = call("sft", "srl-sft", *data, *held, "--run", "runs/srl-sft")
    assert code == 0, err
    code, _, err = call("train", "srl", *data, *held)
    assert code == 0, err
    assert Path("runs/srl-sft/final/config.json").exists()

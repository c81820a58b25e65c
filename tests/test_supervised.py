"""Warm starts: maximum likelihood against Hugging Face's own loss, demonstrations token by token, runs end to end."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from logpi import api
from logpi.config import make_config
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.learner import learning_rate_schedule
from logpi.policies.untrained import END, learn_tokenizer
from logpi.supervised import MAXIMUM_LIKELIHOOD, Demonstrations, blocks, solutions
from logpi.tasks.base import Problem, Task
from logpi.tasks.demonstrations import demonstrations
from logpi.tasks.text import text

SAID = [("1+1", "2"), ("What is 12+30", "it is 42"), ("3", "What"), ("9+9+9+9+9+9+9", "9 9 9 9 9 9 9 9"), ("+", "= =")]
LORA = {"r": 4, "lora_alpha": 6.0}


def chat(content):
    return [{"role": "user", "content": content}]


def task_of(said=SAID, heldout=()):
    def problems(pairs, first):
        return [Problem(first + i, chat(p), {"completion": c}) for i, (p, c) in enumerate(pairs)]

    return Task("said", problems(said, 0), problems(heldout, len(said)), rewards=[])


def of_tiny(policy, said=SAID):
    return solutions(task_of(said).train, task_of(said), policy)


def gradient(policy, given, micro_batch_tokens=10**9):
    """Return the learner's loss and gradient by parameter."""
    found = [d.trajectory(group=i) for i, d in enumerate(given)]
    return models.gradient(policy, found, MAXIMUM_LIKELIHOOD, micro_batch_tokens=micro_batch_tokens)


def theirs(policy, rows, monkeypatch):
    """Return Hugging Face's loss and gradient on rows (prompt ids, completion ids), what it must not learn at −100."""
    network = policy.network
    merged = {layer: vars(layer).pop("forward") for layer in network.modules() if "forward" in vars(layer)}  # to peft's
    network.set_attn_implementation("eager")
    tokens = pad_sequence([torch.tensor(p + c) for p, c in rows], batch_first=True, padding_value=2)
    labels = pad_sequence([torch.tensor([-100] * len(p) + c) for p, c in rows], batch_first=True, padding_value=-100)
    attend = pad_sequence([torch.ones(len(p + c)) for p, c in rows], batch_first=True)
    with monkeypatch.context() as patch:
        if policy.dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # their loss would round to float32
        loss = network(input_ids=tokens, attention_mask=attend, labels=labels).loss
    parameters = policy.trainable_parameters()
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    network.set_attn_implementation("logpi")
    for layer, forward in merged.items():
        layer.forward = forward
    return float(loss.detach()), dict(zip(parameters, slopes, strict=True))


def ids(content):
    return [models.CHARACTERS.index(c) for c in content]


# --- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "lora", "tolerance"),
    [
        ("gpt2", torch.float64, None, 1e-10),
        ("gpt2", torch.float64, LORA, 1e-10),
        ("llama", torch.float32, None, 1e-5),
    ],
)
def test_loss_and_gradient_are_hugging_faces_own(kind, dtype, lora, tolerance, monkeypatch):
    """On rows built here by hand: the template ends a prompt with "=", the end token is 0, prompts are not learnt."""
    tiny = models.policy(kind, dtype, lora=lora)
    loss, found = gradient(tiny, of_tiny(tiny))
    wanted_loss, wanted = theirs(tiny, [(ids(p + "="), [*ids(c), 0]) for p, c in SAID], monkeypatch)
    error = models.relative_error(found, wanted)
    print(f"gradient: {error:.1e}")
    assert error <= tolerance and loss == pytest.approx(wanted_loss, rel=tolerance)


def test_a_text_in_one_block_has_hugging_faces_loss(monkeypatch):
    tiny = models.policy("gpt2", torch.float64)
    (block,) = blocks([Problem(0, "What is 1+1"), Problem(1, "42")], tiny, 64)
    loss, found = gradient(tiny, [block])
    wanted_loss, wanted = theirs(tiny, [([0], [*ids("What is 1+1"), 0, *ids("42"), 0])], monkeypatch)
    assert models.relative_error(found, wanted) <= 1e-10 and loss == pytest.approx(wanted_loss, rel=1e-12)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40])
def test_micro_batches_and_order_change_nothing_but_rounding(micro_batch_tokens):
    tiny = models.policy("gpt2", torch.float64)
    loss, whole = gradient(tiny, of_tiny(tiny))
    other_loss, parts = gradient(tiny, of_tiny(tiny)[::-1], micro_batch_tokens)
    assert models.relative_error(parts, whole) <= 1e-12 and other_loss == pytest.approx(loss, rel=1e-14)


def experience(policy, task, **options):
    options = {"seed": 0, "batch_size": 2, "micro_batch_tokens": 10**9} | options
    return Demonstrations(policy, task, lambda problems: solutions(problems, task, policy), **options)


def test_the_heldout_loss_is_their_mean_a_token_and_its_bits_do_not_depend_on_the_batch(monkeypatch):
    tiny = models.policy("gpt2", torch.float64)
    task = task_of(SAID[:1], SAID[1:])
    found = experience(tiny, task).evaluate(0)
    wanted, _ = theirs(tiny, [(ids(p + "="), [*ids(c), 0]) for p, c in SAID[1:]], monkeypatch)
    loss, perplexity = found.metrics["loss"], found.metrics["perplexity"]
    assert loss.score == pytest.approx(wanted, rel=1e-12) and loss.n == 4
    assert found.score == -loss.score and (found.low, found.high) == (-loss.high, -loss.low)
    assert perplexity.score == math.exp(loss.score) and loss.low < loss.score < loss.high
    tiny = models.policy("llama")
    several = [experience(tiny, task, micro_batch_tokens=n).evaluate(0).score for n in (1, 30, 10**9)]
    assert len(set(several)) == 1


def test_the_interval_of_the_loss_is_that_of_a_ratio():
    """Of demonstrations of equal length it is the plain interval of their losses."""
    tiny = models.policy("gpt2", torch.float64)
    said = [("1", "23"), ("2", "45"), ("3", "67")]
    found = experience(tiny, task_of(SAID[:1], said)).heldout_loss()
    losses = torch.tensor([gradient(tiny, of_tiny(tiny, [pair]))[0] for pair in said], dtype=torch.float64)
    assert found.score == pytest.approx(float(losses.mean()), rel=1e-12)
    assert found.high - found.score == pytest.approx(1.959964 * float(losses.std()) / math.sqrt(3), rel=1e-6)


# --- which tokens, in which order ---------------------------------------------------------------------------------


def test_a_completion_is_all_tokens_behind_the_prompt_and_the_end():
    tiny = models.policy("llama")
    first = of_tiny(tiny)[0]
    assert first.prompt.tolist() == ids("1+1=") and first.completion.tolist() == [*ids("2"), 0]
    trajectory = first.trajectory()
    assert trajectory.terminated and trajectory.rewards.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("block_size", [8, 9, 64])
def test_every_token_of_a_text_is_predicted_once_and_documents_end(block_size):
    tiny = models.policy("llama")
    documents = [Problem(0, "What is 1+1? 2"), Problem(1, "3"), Problem(2, "4+4=8 8 8 8 8")]
    found = blocks(documents, tiny, block_size)
    stream = [token for document in documents for token in [*ids(document.prompt), 0]]
    assert torch.cat([block.completion for block in found]).tolist() == stream
    assert [int(block.prompt) for block in found] == [0, *stream][: len(stream) : block_size]
    assert {len(block.completion) for block in found[:-1]} <= {block_size}


def test_an_epoch_has_every_demonstration_once_and_the_next_another_order():
    tiny = models.policy("llama")
    given = experience(tiny, task_of([(str(i), "1") for i in range(9)]), batch_size=3)
    epochs = [[uid for step in range(3 * e, 3 * e + 3) for uid in given.plan(step)] for e in range(3)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    again = experience(tiny, task_of([(str(i), "1") for i in range(9)]), batch_size=3)
    assert [t.prompt_uid for t in again.sample(4, 0, range(3))] == given.plan(4)
    other = experience(tiny, task_of([(str(i), "1") for i in range(9)]), batch_size=3, seed=1)
    assert [other.plan(s) for s in range(3)] != [given.plan(s) for s in range(3)]


def test_a_demonstration_that_comes_twice_in_a_step_is_two_samples():
    tiny = models.policy("llama")
    found = experience(tiny, task_of(SAID[:2]), batch_size=5).sample(0, 0, range(5))
    assert Counter((t.prompt_uid, t.sample) for t in found).most_common(1)[0][1] == 1
    assert [t.group for t in found] == list(range(5))


def test_each_assistant_turn_is_a_demonstration_and_a_conversation_stays_on_its_side():
    def conversation(n):
        turns = [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "1"}]
        return {"messages": [*turns, {"role": "user", "content": "?"}, {"role": "assistant", "content": "2"}]}

    task = demonstrations([conversation(n) for n in range(8)], heldout=4)
    assert len(task.train) + len(task.heldout) == 16
    first, second = task.train[:2]
    assert first.prompt == chat(first.prompt[0]["content"]) and first.columns["completion"] == "1"
    assert second.prompt[:1] == first.prompt and len(second.prompt) == 3 and second.columns["completion"] == "2"
    assert not {p.prompt[0]["content"] for p in task.train} & {p.prompt[0]["content"] for p in task.heldout}
    assert len({p.uid for p in [*task.train, *task.heldout]}) == 16


def test_trls_two_forms_of_a_completion_mean_the_same():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": [{"role": "assistant", "content": "b"}]}]
    task = demonstrations(rows, heldout=0)
    assert [p.columns["completion"] for p in task.train] == ["b", "b"]


def test_a_tokenizer_says_every_text_and_ends_messages():
    learnt = learn_tokenizer(["the cat and the hat"] * 20, 270)
    for content in ("the cat", "été \u2028 漢字 \U0001f600", "\n\n  x"):
        assert learnt.decode(learnt(content)["input_ids"]) == content
    assert len(learnt("the")["input_ids"]) < 3 and len(learnt) <= 270 and learnt.eos_token == END
    words = learnt.apply_chat_template([*chat("hi"), {"role": "assistant", "content": "ho"}], tokenize=False)
    assert words == "<|user|>hi<|end|><|assistant|>ho<|end|>"
    assert learnt.apply_chat_template(chat("hi"), tokenize=False, add_generation_prompt=True).endswith("<|assistant|>")
    assert learnt("<|assistant|>")["input_ids"] == [3]


def test_chinese_characters_are_never_joined_into_one_token():
    learnt = learn_tokenizer(["白日依山盡，黃河入海流。"] * 50, 400)
    assert [len(learnt(text)["input_ids"]) for text in ("白日", "黃河入海流", "日白山")] == [2, 5, 3]


def test_a_cosine_falls_from_1_to_0_through_a_half():
    factor = learning_rate_schedule(14, 4, "cosine")
    assert [factor(s) for s in (0, 3)] == [0.2, 0.8]
    assert [factor(s) for s in (4, 9, 14)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
    assert factor(5) > learning_rate_schedule(14, 4, "linear")(5) and factor(13) < 0.1


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl\n', r"d.jsonl:2: not valid JSON"),
        ('{"prompt": "a"}\n', r'd.jsonl:1: row 0 has no column "completion" \(it has: prompt\)'),
        ('{"prompt": "a", "completion": ""}\n', r"""row 0: "completion" is ''; it must be text"""),
        ('{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}\n', r'row 0: "completion" is'),
        ('{"prompt": "a", "completion": 7}\n', r'row 0: "completion" is 7; it must be text'),
        ('{"promt": "a", "completion": "b"}\n', r'row 0 has no column "prompt".*Did you mean "promt"'),
        ('{"messages": [{"role": "assistant", "content": "b"}]}\n', r'"messages" has no assistant turn after another'),
        ('{"messages": "hi"}\n', r'"messages" is text; it must be a list of messages'),
        ('{"messages": [{"role": "user"}]}\n', r'"messages": message 0 is .*must have text as role and content'),
        ("", r"d.jsonl: holds no rows"),
    ],
)
def test_bad_demonstrations_are_named_before_a_model_loads(tmp_path, content, message):
    (tmp_path / "d.jsonl").write_text(content)
    config = make_config({"sft": {}, "task": {"name": "demonstrations", "data": f"{tmp_path}/d.jsonl"},
                          "policy": {"model": "no/model"}})  # fmt: skip
    with pytest.raises(InputError, match=message):
        api.run(config, folder=tmp_path / "run", observer=make_observer(json=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nbad \xff\n", r"a.txt:2: byte 0xff is not UTF-8"),
        ("a.txt", b" \n", r"a.txt: holds no rows"),
        ("a.txt", b"one line", r"a.txt: 1 lines are too few to hold out 0.1 of them"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r'a.jsonl:2: row 1 has no column "text".*Did you mean "txt"'),
        ("a.jsonl", b'{"text": "a"}\n{"text": " "}\n', r'a.jsonl:2: row 1: "text" is empty'),
        ("a.md", b"text", r'a.md: unknown extension ".md"'),
    ],
)
def test_bad_texts_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        text(str(tmp_path / name))


def test_the_last_lines_of_a_single_text_are_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(20)))
    task = text(str(tmp_path / "a.txt"), heldout=0.25)
    assert task.train[0].prompt.splitlines() == [f"line {i}" for i in range(15)]
    assert task.heldout[0].prompt.splitlines() == [f"line {i}" for i in range(15, 20)]
    several = text([{"text": f"{i}"} for i in range(10)], heldout=3)
    assert len(several.train) == 7 and len(several.heldout) == 3


ADDITION = {"task": {"name": "addition"}, "policy": {"model": "x"}}
TEXT = {"task": {"name": "text", "data": [{"text": "a"}, {"text": "b"}]}, "pretrain": {}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**ADDITION, "sft": {}, "strict": True}, "strict compares sampled log-probs, and sft samples nothing"),
        ({**ADDITION, "sft": {}, "rollout": {"num_prompts": 4}}, "rollout.num_prompts: sft samples nothing"),
        ({**ADDITION, "sft": {}, "algorithm": {"beta": 0.1}}, "algorithm.beta: sft samples nothing"),
        ({**ADDITION, "sft": {}, "reward": {"truncated": "exclude"}}, "reward.truncated: sft samples nothing"),
        ({**ADDITION, "sft": {}, "policy": {"model": "x", "top_k": 5}}, "policy.top_k=5: sft trains the model's own"),
        ({**ADDITION, "sft": {"batchsize": 1}}, 'unknown key "sft.batchsize". Did you mean "batch_size"'),
        ({**ADDITION, "sft": {}, "pretrain": {}}, "sft and pretrain are two commands"),
        ({**TEXT, "policy": {"lora": {}}}, "policy.lora adapts weights that are trained already"),
        ({**TEXT, "policy": {"model": "x"}, "pretrain": {"shape": {}}}, "policy.model and pretrain.shape both give"),
        ({**TEXT, "pretrain": {"vocab_size": 200}}, "greater than or equal to 260"),
        ({**TEXT, "pretrain": {"shape": {"hidden_size": 36}}}, "hidden_size=36 is no multiple of 2·num_attention"),
        ({**TEXT, "pretrain": {"shape": {"num_key_value_heads": 3}}}, "num_key_value_heads=3 does not divide num_att"),
        ({"environment": "CartPole-v1", "policy": {"kind": "mlp"}, "sft": {}}, "sft trains a language model"),
    ],
)  # fmt: skip
def test_what_a_warm_start_does_not_read_is_an_error(values, message):
    with pytest.raises(InputError) as error:
        make_config(values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**TEXT, "pretrain": None, "policy": {"model": "x"}}, 'task "text" has no rewards .* for logpi pretrain'),
        ({**TEXT, "pretrain": None, "sft": {}, "policy": {"model": "x"}}, 'task "text" has no completions to imitate'),
        ({**TEXT, "task": {"name": "addition"}}, 'task "addition" is no text to read'),
    ],
)
def test_a_task_that_a_command_cannot_use_is_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        api.run(make_config(values), folder=tmp_path / "run", observer=make_observer(json=True))


def test_a_row_without_a_solution_or_too_long_for_the_model_is_named():
    tiny = models.policy("llama", context=10)
    with pytest.raises(InputError, match=r'task "said": row 1 has 14 \+ 9 tokens.*context is 10'):
        of_tiny(tiny)
    task = Task("puzzle", [Problem(3, chat("1"), {"solution": None})], [], rewards=[], solution="solution")
    with pytest.raises(InputError, match=r'task "puzzle": row 3 has no text in its column "solution" \(None\)'):
        solutions(task.train, task, tiny)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train countdown-sft --data x.jsonl", "countdown-sft is for another command: logpi sft countdown-sft"),
        ("sft", "sft what? Give a recipe (logpi recipes lists them), or your own --data FILE"),
        ("sft --data x.jsonl", "policy.model is missing"),
        ("sft smollm2-addition", "rollout.num_prompts: sft samples nothing to train on; leave it out"),
        ("pretrain --data x.txt --pretrain.vocabsize 300", 'Did you mean "--pretrain.vocab-size"?'),
        ("pretrain --data x.txt --algorithm rloo", "Unknown option: --algorithm"),
    ],
)
def test_the_command_line_says_what_is_wrong(call, words, message):
    code, _, err = call(*words.split())
    assert code == 2 and message in err


# --- runs ---------------------------------------------------------------------------------------------------------


def rows_of(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(run) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pre-train on sums as text, fine-tune on them as a chat, train by rewards: each from the last one's final/."""
    root = tmp_path_factory.mktemp("chain")
    sums = [f"{a}+{b}={a + b}" for a in range(10) for b in range(10)]
    (root / "sums.txt").write_text("\n".join(sums * 3) + "\n")
    small = {"threads": 1, "policy": {"dtype": "float32"}, "checkpoint": {"every_steps": 100}}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    pretrain = {"task": {"name": "text", "data": str(root / "sums.txt")}, "max_steps": 120,
                "pretrain": {"block_size": 48, "vocab_size": 260, "shape": shape},
                "learner": {"learning_rate": 1e-2, "schedule": "cosine"}}  # fmt: skip
    addition = {"task": {"name": "addition", "max_operand": 3, "num_heldout": 4, "template": "{a}+{b}="}}
    sft = {**addition, "sft": {"batch_size": 12}, "rollout": {"max_completion_length": 4}, "max_steps": 240,
           "evaluation": {"full_report": False},
           "learner": {"learning_rate": 5e-3, "warmup_steps": 20, "schedule": "cosine"}}  # fmt: skip
    rollout = {"num_prompts": 4, "num_generations": 4, "max_completion_length": 4}
    train = {**addition, "rollout": rollout, "max_steps": 2, "evaluation": {"full_report": False}}
    found, before = {}, None
    for name, values in (("pretrain", pretrain), ("sft", sft), ("train", train)):
        model = {} if before is None else {"policy": {"model": before, "dtype": "float32"}}
        config = make_config({**small, **values, **model})
        found[name] = api.run(config, folder=root / name, observer=make_observer(json=True))
        before = found[name]["final"]
    return found


def test_pre_training_learns_more_than_how_often_each_token_comes(chain):
    run = Path(chain["pretrain"]["run"])
    heldout = text(str(run.parent / "sums.txt")).heldout[0].prompt
    counts = Counter(heldout)
    unigram = -sum(n / len(heldout) * math.log(n / len(heldout)) for n in counts.values())
    before, after = (chain["pretrain"]["evaluation"][when]["metrics"]["loss"]["score"] for when in ("before", "after"))
    assert before == pytest.approx(math.log(260), rel=0.05) and after < 0.8 * unigram
    assert chain["pretrain"]["ledger"]["as_planned"] and chain["pretrain"]["ledger"]["completions"] == 120 * 16
    assert (run / "start" / "tokenizer.json").is_file()
    assert rows_of(run)[-1].keys() == {"step", "loss", "grad_norm", "num_tokens", "learning_rate"}


def test_fine_tuning_gains_and_its_model_can_be_trained_by_rewards(chain):
    before, after = (chain["sft"]["evaluation"][when] for when in ("before", "after"))
    assert after["metrics"]["loss"]["score"] < before["metrics"]["loss"]["score"]
    assert set(after["metrics"]) == {"loss", "perplexity", "strict", "last_integer"}
    assert rows_of(chain["sft"]["run"])[-1]["loss"] < 0.5 and chain["sft"]["ledger"]["as_planned"]
    start = chain["train"]["evaluation"]["before"]["score"]
    assert start == after["score"] and chain["train"]["status"] == "finished"
    assert rows_of(chain["train"]["run"])[0]["reward"] > 0.3  # it says what it was shown


def test_a_finished_warm_start_can_be_scored_and_sampled(chain):
    for name in ("pretrain", "sft"):
        found, known = api.evaluate_run(chain[name]["run"]), chain[name]["evaluation"]["after"]
        assert found["score"] == known["score"] and found["metrics"] == known["metrics"]
    said = api.sample_run(chain["pretrain"]["run"], "1+1=", 2)
    assert len(said) == 2


def test_a_network_of_a_configuration_that_one_has(tmp_path):
    models.write(tmp_path / "like", "gpt2")
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 30)
    values = {"task": {"name": "text", "data": f"{tmp_path}/a.txt"}, "pretrain": {"block_size": 32}, "threads": 1,
              "policy": {"model": f"{tmp_path}/like", "dtype": "float32"}, "max_steps": 1}  # fmt: skip
    summary = api.run(make_config(values), folder=tmp_path / "run", observer=make_observer(json=True))
    config = json.loads(Path(summary["final"], "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["n_layer"] == 2 and 260 <= config["vocab_size"] <= 1024
    values |= {"pretrain": {"block_size": 500}}
    with pytest.raises(InputError, match=r"pretrain.block_size=500 is over the context of .*, 192; lower it"):
        api.run(make_config(values), folder=tmp_path / "other", observer=make_observer(json=True))


def test_the_heads_of_a_new_network_share_keys_and_values_where_asked(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 30)
    pretrain = {"block_size": 32, "shape": {"num_key_value_heads": 2}}
    values = {"task": {"name": "text", "data": f"{tmp_path}/a.txt"}, "threads": 1, "max_steps": 1,
              "policy": {"dtype": "float32"}, "pretrain": pretrain}  # fmt: skip
    summary = api.run(make_config(values), folder=tmp_path / "run", observer=make_observer(json=True))
    weights = load_file(Path(summary["final"], "model.safetensors"))
    shapes = {name.split(".")[-2]: list(weight.shape) for name, weight in weights.items()}
    assert shapes["k_proj"] == shapes["v_proj"] == [64, 128] and shapes["q_proj"] == [128, 128]
    values["policy"] |= {"kind": "encoder"}
    with pytest.raises(InputError, match="num_key_value_heads=2: an encoder's heads all have their own; leave it out"):
        api.run(make_config(values), folder=tmp_path / "other", observer=make_observer(json=True))


def test_other_text_is_another_run(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 30)
    values = {"task": {"name": "text", "data": f"{tmp_path}/a.txt"}, "pretrain": {"block_size": 32}, "threads": 1,
              "policy": {"dtype": "float32"}, "max_steps": 1}  # fmt: skip
    api.run(make_config(values), folder=tmp_path / "run", observer=make_observer(json=True))
    (tmp_path / "a.txt").write_text("to be or not to bee\n" * 30)
    with pytest.raises(InputError, match="the run began with other data"):
        api.run(make_config(values | {"max_steps": 2}), folder=tmp_path / "run", observer=make_observer(json=True))

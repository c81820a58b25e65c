"""Dropout of demonstrations: against transformers' module with the same units left out, and where it must not reach."""

from __future__ import annotations

import hashlib
import json

import models
import numpy as np
import pytest
import torch

from logpi import api
from logpi.config import make_config
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.learner import Learner
from logpi.policies.dropout import Dropout
from logpi.randomness import Stream, philox4x64, random_bytes
from logpi.supervised import MAXIMUM_LIKELIHOOD, Demonstration
from logpi.trajectory import make_batch

RATE = 0.25  # 64 of 256
ROWS = [([5, 6, 7], [8, 9, 0]), ([4], [3, 3, 3, 3, 3, 1]), ([5, 6, 7], [10, 1]), ([9, 9, 9, 9, 9, 9, 9], [2, 0])]


def trajectories(rows=ROWS):
    said = [Demonstration(i, torch.tensor(p), torch.tensor(c)) for i, (p, c) in enumerate(rows)]
    return [d.trajectory(group=i) for i, d in enumerate(said)]


def learner_of(policy, dropout, **options):
    return Learner(policy, MAXIMUM_LIKELIHOOD, learning_rate=1e-2, dropout=dropout, **options)


def gradient(learner, rows=ROWS):
    found = learner.backward(models.minibatch(learner, trajectories(rows), several_updates=False))
    return found.loss, {n: p.grad.clone() for n, p in learner.parameters.items()}


def factors(sequence, count, sites, width, step):
    """Return 0 or 1/(1 − rate) of each unit [count, sites, width] of a sequence's last tokens, from the generator's
    words themselves."""
    name = int.from_bytes(hashlib.blake2b(np.array(sequence, np.int64).tobytes(), digest_size=8).digest(), "little")
    blocks = np.arange(1, -(-count * sites * width // 32) + 1)
    words = np.stack(philox4x64((7, int(Stream.DROPOUT)), (blocks, step, name, 0)), 1)
    drawn = words.astype("<u8").tobytes()[: count * sites * width]
    return torch.tensor(list(drawn)).view(count, sites, width).ge(64) / 0.75


def theirs(policy, step=0):
    """Return the loss a token and gradient of transformers' own module, whose parts' outputs are multiplied."""
    network, total = policy.network, 0.0
    network.set_attn_implementation("eager")
    base, width = network.base_model, network.config.hidden_size
    layers = list(base.layers)
    parts = [base.embed_tokens, *(part for layer in layers for part in (layer.self_attn, layer.mlp))]
    for prompt, completion in ROWS:
        whole = [*prompt, *completion[:-1]]
        asked = (prompt, len(prompt)), (whole, len(completion) - 1)
        kept = torch.cat([factors(*each, len(parts), width, step) for each in asked])

        def hook(site, kept=kept):
            def multiply(module, inputs, out):
                return (out[0] * kept[:, site], *out[1:]) if isinstance(out, tuple) else out * kept[:, site]

            return multiply

        hooks = [part.register_forward_hook(hook(site)) for site, part in enumerate(parts)]
        logits = network(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 :]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        for each in hooks:
            each.remove()
    loss = total / sum(len(completion) for _, completion in ROWS)
    slopes = torch.autograd.grad(loss, list(policy.trainable_parameters().values()))
    network.set_attn_implementation("logpi")
    return float(loss.detach()), dict(zip(policy.trainable_parameters(), slopes, strict=True))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("step", [0, 3])
def test_its_gradient_is_that_of_the_module_with_the_same_units_left_out(kind, step):
    tiny = models.policy(kind)
    assert tiny.fused is not None
    learner = learner_of(tiny, Dropout(RATE, seed=7))
    learner.num_updates = step
    loss, found = gradient(learner)
    wanted_loss, wanted = theirs(tiny, step)
    assert loss == pytest.approx(wanted_loss, rel=1e-5) and models.relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("micro_batch_tokens", [1, 12])
def test_micro_batches_leave_out_the_same_units(micro_batch_tokens):
    def of(tokens, rows):
        return gradient(learner_of(models.policy("llama"), Dropout(RATE, 7), micro_batch_tokens=tokens), rows)[1]

    assert models.relative_error(of(micro_batch_tokens, ROWS[::-1]), of(10**9, ROWS)) < 1e-5


def test_each_step_seed_and_sequence_leaves_out_others_and_a_sequence_the_same_ones():
    a, b = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])
    of = [(0, 0, a), (0, 1, a), (1, 0, a), (0, 0, b)]
    drawn = [Dropout(RATE, seed, step)._bytes(sequence, 3, 64) for seed, step, sequence in of]
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))
    assert torch.equal(drawn[0], Dropout(0.5, 0)._bytes(a, 3, 64))
    assert torch.equal(drawn[0][:2], Dropout(RATE, 0)._bytes(a, 2, 64))


def test_units_are_left_out_at_the_rate_and_the_mean_stays():
    drop = Dropout(RATE, 1).of([torch.arange(400)], [400], (408, 3, 64))
    for site in range(3):
        found = drop(torch.ones(408, 64), site)
        assert bool((found[400:] == found[400:].max()).all())  # padding is not left out
        share = float((found[:400] == 0).double().mean())
        assert abs(share - RATE) < 3.3 * (RATE * (1 - RATE) / (400 * 64)) ** 0.5  # 99.9 % of seeds
        assert found[:400].unique().tolist() == pytest.approx([0.0, 1 / 0.75])


def test_bytes_are_those_of_the_keyed_generator():
    words = [philox4x64((5, int(Stream.DROPOUT)), (n, 2, 9, 0)) for n in (1, 2)]
    wanted = b"".join(int(word).to_bytes(8, "little") for block in words for word in block)
    assert random_bytes(5, Stream.DROPOUT, 2, 9, 61).tobytes() == wanted[:61]


def test_only_a_gradient_leaves_units_out():
    tiny = models.policy("llama")
    batch = make_batch(trajectories())
    learner = learner_of(tiny, Dropout(RATE, 7))
    whole = learner._evaluate_all(tiny, batch).log_probs
    assert torch.equal(whole, learner_of(tiny, None)._evaluate_all(tiny, batch).log_probs)
    with_dropout, without = gradient(learner)[1], gradient(learner_of(tiny, None))[1]
    assert models.relative_error(with_dropout, without) > 0.1


# --- runs ---------------------------------------------------------------------------------------------------------


def config(tmp_path, **changes):
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(6)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = {"vocab_size": 270, "context_length": 64, "shape": {"hidden_size": 16, "num_hidden_layers": 1}}
    new["shape"] |= {"intermediate_size": 24, "num_attention_heads": 2}
    values = {
        "task": {"name": "demonstrations", "data": str(tmp_path / "said.jsonl")},
        "max_steps": 4,
        "sft": {"batch_size": 6, "new": new, "dropout": RATE},
        "learner": {"learning_rate": 1e-2},
        "checkpoint": {"every_steps": 2},
    }
    return make_config(values | changes)


def weights(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


def test_a_run_that_goes_on_from_a_checkpoint_leaves_out_what_the_whole_one_does(tmp_path):
    quiet = make_observer(json=True)
    api.run(config(tmp_path), folder=tmp_path / "whole", observer=quiet)
    api.run(config(tmp_path, max_steps=2), folder=tmp_path / "parts", observer=quiet)
    api.run(config(tmp_path), folder=tmp_path / "parts", observer=quiet)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    plain = config(tmp_path).plain()["sft"] | {"dropout": 0.0}
    api.run(config(tmp_path, sft=plain), folder=tmp_path / "plain", observer=quiet)
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")


def test_a_network_that_cannot_is_named(tmp_path):
    folder = tmp_path / "gpt2"
    models.network("gpt2").save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    asked = {"sft": {"dropout": 0.1}, "policy": {"model": str(folder)}}
    with pytest.raises(InputError, match=r"sft\.dropout=0\.1: only Llama-shaped language models"):
        api.run(config(tmp_path, **asked), folder=tmp_path / "run", observer=make_observer(json=True))
    with pytest.raises(InputError, match=r"sft\.dropout"):
        config(tmp_path, sft={"dropout": 1.0}, policy={"model": str(folder)})

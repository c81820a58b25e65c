"""Generation: the right frequencies, ends that are told from cuts, and results that batching does not change."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import CONTEXT, ENDS, NATIVE_BF16, VOCABULARY, policy, prompts, sample

from logpi.policies.attention import attention_of, round_up
from logpi.policies.memory import bytes_of_position
from logpi.policies.token_log_probs import Transform
from logpi.randomness import Stream
from logpi.rollout import engine
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.rollout.sampling import draw
from logpi.trajectory import make_batch

DTYPES = [torch.float32] + [torch.bfloat16] * NATIVE_BF16
LENGTHS = [3, 17, 64, 9, 40, 12, 5]


def eager(policy):
    """Return the same network with the attention of transformers."""
    network = copy.deepcopy(policy.network)
    network.set_attn_implementation("eager")
    return network


# --- frequencies -----------------------------------------------------------------------------------------------------


def p_value(counts, probabilities):
    """Return P(χ² ≥ observed): the upper tail of the gamma distribution with shape dof/2 at χ²/2."""
    expected = probabilities * counts.sum()
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def test_the_tail_of_chi_squared():
    # 5 degrees of freedom: the table's 0.001 critical value
    counts = torch.full((6,), 1000.0, dtype=torch.float64)
    counts[0] += (20.515 * 1000 / 2) ** 0.5
    counts[1] -= (20.515 * 1000 / 2) ** 0.5
    assert p_value(counts, torch.full((6,), 1 / 6, dtype=torch.float64)) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("temperature", "fits"), [(1.0, True), (1.05, False)])
def test_pairs_of_tokens_come_as_often_as_softmax_says(temperature, fits):
    """20 000 completions of two tokens against the 36 probabilities; a sampler 5 % too hot must be caught."""
    tiny = policy("llama", vocabulary=6, ends=(), seed=3)
    (prompt,) = prompts([4], vocabulary=6)
    with torch.no_grad():
        rows = torch.cat([prompt.tokens.expand(6, -1), torch.arange(6)[:, None]], 1)
        log_probs = eager(tiny)(input_ids=rows).logits[:, -2:].double().log_softmax(-1)
        expected = (log_probs[0, 0][:, None] + log_probs[:, 1]).exp().flatten()
    tiny.transform = Transform(temperature)
    drawn = torch.stack(
        [t.actions for t in generate(tiny, [prompt], 20_000, Sampling(2, max_rows=20_000, max_keys=20_000 * 64))]
    )
    counts = torch.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36).double()
    p = p_value(counts, expected)
    print(f"p = {p:.3g}")
    assert (p > 1e-3) == fits


@pytest.mark.parametrize("num_actions", [5, 256, 1000])
def test_draw_inverts_the_distribution_function(num_actions):
    generator = torch.Generator().manual_seed(0)
    log_probs = (3 * torch.randn(num_actions, generator=generator)).log_softmax(-1)
    log_probs[1] = -float("inf")
    log_probs = log_probs.log_softmax(-1)
    num = 40_000
    drawn = draw(log_probs.exp().expand(num, -1), (np.arange(num) + 0.5) / num)
    counts = torch.bincount(drawn, minlength=num_actions)
    assert (counts - num * log_probs.double().exp()).abs().max() < 1.1  # evenly spread numbers leave no chance
    assert counts[1] == 0
    edge = draw(log_probs.exp().expand(2, -1), np.array([0.0, 1 - 2**-53]))
    assert (log_probs[edge] > -float("inf")).all()


# --- ends ------------------------------------------------------------------------------------------------------------


def test_an_end_is_an_action_and_a_cut_is_not_an_end():
    trajectories = sample(policy("gpt2"), LENGTHS, 16, max_new_tokens=8)
    for t in trajectories:
        assert t.terminated == (int(t.actions[-1]) in ENDS) and t.truncated != t.terminated
        assert not set(t.actions[:-1].tolist()) & set(ENDS)
        assert len(t) == len(t.behavior_log_probs) == len(t.entropies) and (len(t) == 8 or t.terminated)
    assert {int(t.actions[-1]) for t in trajectories if t.terminated} == set(ENDS)  # the second one ends as well
    assert any(t.truncated for t in trajectories) and any(t.terminated and len(t) == 8 for t in trajectories)


def test_a_token_without_a_number_is_a_failure_and_no_end(monkeypatch):
    tiny = policy("llama", ends=tuple(range(VOCABULARY)))
    original = tiny.next_token_logits

    def broken(hidden):
        found = original(hidden)
        found[1] = float("nan")
        return found

    monkeypatch.setattr(tiny, "next_token_logits", broken)
    right, wrong = generate(tiny, prompts([5, 3]), 1, Sampling(4))  # the longer one runs first
    assert (right.terminated, right.truncated, right.failure) == (True, False, None) and len(right) == 1
    assert (wrong.terminated, wrong.truncated) == (False, True) and wrong.failure == "logits not finite at position 0"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_recorded_log_probs_and_entropies_are_those_of_transformers(kind):
    tiny = policy(kind, temperature=0.8)
    network = eager(tiny)
    for t in sample(tiny, LENGTHS, 2):
        with torch.no_grad():
            logits = network(input_ids=torch.cat([t.inputs, t.actions])[None]).logits[0, len(t.inputs) - 1 : -1]
        everything = (logits.double() / 0.8).log_softmax(-1)
        expected = everything.gather(1, t.actions[:, None])[:, 0]
        torch.testing.assert_close(t.behavior_log_probs.double(), expected, rtol=0, atol=2e-5)
        expected = -(everything.exp() * everything).sum(1)
        torch.testing.assert_close(t.entropies.double(), expected, rtol=0, atol=2e-5)


# --- batching changes nothing ----------------------------------------------------------------------------------------


def same(a, b):
    return (
        torch.equal(a.actions, b.actions)
        and torch.equal(a.behavior_log_probs, b.behavior_log_probs)
        and torch.equal(a.entropies, b.entropies)
        and (a.prompt_uid, a.sample, a.terminated) == (b.prompt_uid, b.sample, b.terminated)
    )


def side_by_side(monkeypatch):
    """Return a list that gets how many completions each batch has."""
    run, seen = engine._run, []

    def watched(policy, prompts, num_samples, *rest, **more):
        seen.append(len(prompts) * num_samples)
        return run(policy, prompts, num_samples, *rest, **more)

    monkeypatch.setattr(engine, "_run", watched)
    return seen


@pytest.mark.parametrize(("num_generations", "max_rows"), [(4, 8), (20, 8), (3, 8)])
def test_no_more_completions_run_side_by_side_than_allowed(monkeypatch, num_generations, max_rows):
    seen = side_by_side(monkeypatch)
    generate(policy("llama"), prompts(LENGTHS), num_generations, Sampling(4, max_rows=max_rows))
    assert max(seen) <= max_rows and sum(seen) == len(LENGTHS) * num_generations


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])  # a key head of two heads; heads of their own; wide heads
def test_the_cache_holds_the_bytes_that_a_network_lets_it(kind, dtype, monkeypatch):
    tiny = policy(kind, dtype)
    _, kept = tiny.prompt_pass([p.tokens for p in prompts(LENGTHS)])
    held = sum(store.nbytes for layers in (kept.keys, kept.values) for store in layers.values())
    positions = len(LENGTHS) * kept.keys[0].shape[2]
    assert bytes_of_position(tiny.network.config, tiny.dtype) * positions == held
    seen = side_by_side(monkeypatch)
    monkeypatch.setattr(engine, "MAX_KEYS", 96)  # of a completion: 64 + 8, rounded up
    for bytes_at_once, rows in ((0, 8), (held // positions * 96 * 10, 10)):  # eight run at least
        monkeypatch.setattr(engine, "CACHE_BYTES", bytes_at_once)
        seen.clear()
        generate(tiny, prompts(LENGTHS), 2, Sampling(8))
        assert seen[0] == rows


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("num_keys", [20, 130, 200, 300, 600, 1000, 1500])
def test_padding_behind_the_keys_changes_no_bit(num_keys, width, dtype):
    draws = torch.Generator().manual_seed(num_keys)
    query, key, value = (torch.randn(2, h, t, width, generator=draws).to(dtype)
                         for h, t in ((9, 8), (3, 2048), (3, 2048)))  # fmt: skip
    found = []
    for keys in (round_up(num_keys, 32), round_up(num_keys, 32) + 32, round_up(num_keys, 256) + 64, 2048):
        masked = (torch.arange(keys) >= num_keys).expand(2, 1, 8, keys)
        found.append(attention_of(query * width**-0.5, key[:, :, :keys], value[:, :, :keys], masked))
    assert all(torch.equal(other, found[0]) for other in found[1:])
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), *(x[:, :, :num_keys].double().repeat_interleave(3, 1) for x in (key, value))
    )
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found[0].transpose(1, 2).double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_long_sequences_keep_their_bits_in_any_company_and_in_the_learner(kind, dtype):
    """Products over many keys are cut by rules of their own, by how many there are: MKL's from 192 on, oneDNN's beyond
    1024. A sequence beside longer ones has more padding than alone."""
    tiny = policy(kind, dtype, ends=(), context=1600)
    asked = prompts([150, 230, 370, 640, 1010, 1500])
    together = {t.prompt_uid: t for t in generate(tiny, asked, 1, Sampling(24))}
    for prompt in asked:
        (alone,) = generate(tiny, [prompt], 1, Sampling(24))
        assert same(alone, together[prompt.uid]), len(prompt.tokens)
    batch = make_batch([replace(t, rewards=torch.zeros(len(t))) for t in together.values()])
    for rows in (torch.arange(6), torch.tensor([0]), torch.tensor([4, 1])):
        part = batch.select(rows)
        found = tiny.evaluate(part.actions, part.mask, part.truncated, part.inputs).log_probs
        assert torch.equal(found[part.mask], part.behavior_log_probs[part.mask])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_completions_do_not_depend_on_their_company(kind, dtype):
    tiny = policy(kind, dtype, ends=(0,))
    asked = prompts(LENGTHS)
    whole = {(t.prompt_uid, t.sample): t for t in generate(tiny, asked, 4, Sampling(40))}
    assert len({len(t) for t in whole.values()}) > 5

    def check(asked, **options):
        found = generate(tiny, asked, 4, Sampling(40, **options))
        assert [(t.prompt_uid, t.sample) for t in found] == [(p.uid, s) for p in asked for s in range(4)]
        assert [t.group for t in found] == [i for i in range(len(asked)) for _ in range(4)]
        assert all(same(t, whole[t.prompt_uid, t.sample]) for t in found)

    for max_rows in (3, 4, 8, 12, 1000):  # 3: a group does not fit
        check(asked, max_rows=max_rows)
    check(asked, max_keys=1)
    check(asked[::-1])
    check([asked[i] for i in (4, 0, 6)], max_rows=8)
    for prompt in asked[:3]:
        check([prompt])
    # the first of 2 samples are the first of 4
    assert all(same(t, whole[t.prompt_uid, t.sample]) for t in generate(tiny, asked, 2, Sampling(40)))


def test_draws_are_keyed_by_seed_stream_step_and_uid():
    tiny, (prompt,) = policy("llama"), prompts([6])

    def tokens(prompt=prompt, step=0, **options):
        return [t.actions.tolist() for t in generate(tiny, [prompt], 4, Sampling(12, **options), step=step)]

    others = [tokens(seed=1), tokens(stream=Stream.PROBE), tokens(step=1), tokens(TokenPrompt(1, prompt.tokens))]
    assert tokens() == tokens() and all(tokens() != other for other in others)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_is_that_of_transformers(kind):
    tiny, asked = policy(kind, temperature=0.5), prompts([*LENGTHS, 1, 2, 33, CONTEXT - 40])
    network = eager(tiny)
    found = generate(tiny, asked, 1, Sampling(40, greedy=True))
    for prompt, t in zip(asked, found, strict=True):
        options = dict(do_sample=False, max_new_tokens=40, eos_token_id=list(ENDS), pad_token_id=2)
        expected = network.generate(prompt.tokens[None], attention_mask=torch.ones(1, len(prompt.tokens)), **options)
        assert t.actions.tolist() == expected[0, len(prompt.tokens) :].tolist()
    assert len({len(t) for t in found}) > 2

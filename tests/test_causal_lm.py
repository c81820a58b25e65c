"""A causal LM against Hugging Face's own forward: gradients, and the bits that sampler and learner share."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from models import ENDS, NATIVE_BF16, gradient, policy, prompts, relative_error, rewarded, sample, write
from torch.nn.utils.rnn import pad_sequence

from logpi.errors import InputError
from logpi.policies import causal_lm, packing
from logpi.policies.chat import prompt_tokens
from logpi.policies.loading import load_causal_lm
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import make_batch

DTYPES = [torch.float32] + [torch.bfloat16] * NATIVE_BF16
KINDS = ["gpt2", "llama", "qwen3", "gpt_neox"]
LORA = {"r": 4, "lora_alpha": 6.0, "target_modules": "all-linear"}
QUESTIONS = ["What is 3+4?", "Name a colour.", "Say only the word yes, and nothing else at all."]


def plain_log_probs(policy, trajectories):
    """Return log π of each completion's tokens, from whole padded sequences through the eager forward."""
    network = policy.network
    network.set_attn_implementation("eager")
    sequences = [torch.cat([t.inputs, t.actions]) for t in trajectories]
    tokens = pad_sequence(sequences, batch_first=True, padding_value=2)
    attend = pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
    logits = network(input_ids=tokens, attention_mask=attend).logits / policy.transform.temperature
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
    network.set_attn_implementation("logpi")
    starts = [len(t.inputs) - 1 for t in trajectories]
    return [row[start : start + len(t)] for row, start, t in zip(log_probs, starts, trajectories, strict=True)]


def reference(policy, trajectories, algorithm="rloo"):
    """Return loss and gradient of RLOO or REINFORCE, by autograd of the eager forward."""
    network = policy.network
    merged = {layer: vars(layer).pop("forward") for layer in network.modules() if "forward" in vars(layer)}  # to peft's
    log_probs = plain_log_probs(policy, trajectories)
    groups = defaultdict(list)
    for t in trajectories:
        groups[t.group].append(float(t.rewards.sum()))
    loss = torch.zeros((), dtype=torch.float64)
    for row, t in zip(log_probs, trajectories, strict=True):
        others, mine = groups[t.group], float(t.rewards.sum())
        advantage = mine - (sum(others) - mine) / (len(others) - 1) if algorithm == "rloo" else mine
        score = row.sum()
        if algorithm == "rloo":  # its surrogate is the ratio, whose value is 1 and whose gradient is the score
            score = len(t) + score - score.detach()
        loss = loss - advantage * score / len(trajectories)
    parameters = policy.trainable_parameters()
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    for layer, forward in merged.items():
        layer.forward = forward
    return float(loss.detach()), dict(zip(parameters, slopes, strict=True))


def agree(policy, trajectories, tolerance, algorithm="rloo"):
    lengths, prompt_lengths = {len(t) for t in trajectories}, {len(t.inputs) for t in trajectories}
    assert len(lengths) > 2 and len(prompt_lengths) > 2  # ragged on both sides
    loss, found = gradient(policy, trajectories, algorithm)
    expected_loss, expected = reference(policy, trajectories, algorithm)
    error = relative_error(found, expected)
    print(f"gradient: {error:.2e}")
    assert error <= tolerance and loss == pytest.approx(expected_loss, rel=tolerance, abs=tolerance)


# without a baseline as well: a baseline hides what all completions of a prompt have in common
@pytest.mark.parametrize(("algorithm", "temperature"), [("rloo", 1.0), ("rloo", 0.7), ("reinforce", 1.0)])
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [("gpt2", torch.float64, 1e-10), ("llama", torch.float32, 1e-5)]
)
def test_the_gradient_is_that_of_a_plain_full_batch(kind, dtype, tolerance, algorithm, temperature):
    tiny = policy(kind, dtype, temperature=temperature)
    agree(tiny, sample(tiny, [3, 17, 70, 40], max_new_tokens=30), tolerance, algorithm)


@pytest.mark.parametrize(("kind", "tolerance"), [("gpt2", 1e-10), ("llama", 1e-5)])
def test_long_prompts_run_in_pieces_and_few_at_a_time(kind, tolerance, monkeypatch):
    """Against transformers' own forward: sampler and learner share the packing, so they would be wrong together."""
    monkeypatch.setattr(packing, "BLOCK_SCORES", 700)
    monkeypatch.setattr(causal_lm, "PROMPT_TOKENS", 60)
    tiny, passes = policy(kind, torch.float64), []
    run = tiny.packed_states

    def counted(tokens, *asked, **options):
        passes.append(len(tokens))
        return run(tokens, *asked, **options)

    monkeypatch.setattr(tiny, "packed_states", counted)
    trajectories = sample(tiny, [3, 17, 30, 70, 40], max_new_tokens=30)
    assert passes == [72, 48, 56]  # 70, 40 and 3, 30 and 17 tokens: the longest first, one more place, eights
    with torch.no_grad():
        expected = plain_log_probs(tiny, trajectories)
    for row, t in zip(expected, trajectories, strict=True):
        assert (row - t.behavior_log_probs).abs().max() < tolerance
    agree(tiny, trajectories, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_adapter_is_that_of_peft(kind):
    """A layer runs as one product with the merged weight; peft adds two thin products to the frozen one."""
    tiny = policy(kind, torch.float64, lora=LORA)
    tolerance = 1e-10 if kind == "gpt2" else 1e-5  # rotary models compute norms and angles in float32
    agree(tiny, sample(tiny, [3, 17, 70, 40], max_new_tokens=30), tolerance)
    assert all(p.grad is None for p in tiny.module.parameters() if not p.requires_grad)


def instruct_rollout(policy, num_generations=3, max_new_tokens=12):
    """Short completions of chat prompts; commas and full stops are made ends, so that they end at different times."""
    policy = copy.copy(policy)
    policy.eos_token_ids += tuple(policy.tokenizer.convert_tokens_to_ids([".", ",", "!", ":", "Ġis", "Ġof", "Ċ"]))
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    ready = [TokenPrompt(i, prompt_tokens(policy.tokenizer, chat)) for i, chat in enumerate(chats)]
    return rewarded(generate(policy, ready, num_generations, Sampling(max_new_tokens)))


def test_the_gradient_of_smollm2_is_that_of_a_plain_full_batch(smollm2):
    """In float64: the plain one in float32 is 1e-4 from it, by torch's float32 sum over the vocabulary."""
    small = smollm2("float32")
    trajectories = instruct_rollout(small, 2, 9)
    loss, found = gradient(small, trajectories)
    exact = copy.copy(small)
    exact.module = copy.deepcopy(small.module).double()
    expected_loss, expected = reference(exact, trajectories)
    assert relative_error(found, expected) < 5e-5
    assert loss == pytest.approx(expected_loss, rel=5e-5, abs=5e-5)


# --- the same bits -------------------------------------------------------------------------------------------------


def same_bits(policy, trajectories, num_subsets):
    """Assert max |Δ| = 0.0 between sampled and learned log-probs, for the whole batch and for parts in any order."""
    ends = {len(t) for t in trajectories}
    assert len(ends) > 2 and any(t.terminated for t in trajectories)
    draws = torch.Generator().manual_seed(0)
    orders = [torch.arange(len(trajectories)), *(torch.arange(i, i + 1) for i in range(0, len(trajectories), 5))]
    for _ in range(num_subsets):
        size = int(torch.randint(1, len(trajectories) + 1, (1,), generator=draws))
        orders.append(torch.randperm(len(trajectories), generator=draws)[:size])
    whole = make_batch(trajectories)
    entropies = torch.nn.utils.rnn.pad_sequence([t.entropies for t in trajectories], batch_first=True)
    for rows in orders:
        part = whole.select(rows)
        asked = part.actions, part.mask, part.truncated, part.inputs
        out = policy.evaluate(*asked, with_entropy=True)  # as for a gradient
        assert float((out.log_probs.detach() - part.behavior_log_probs).abs().max()) == 0.0
        assert torch.equal(out.entropies, entropies[rows][:, : part.mask.shape[1]])


@pytest.mark.parametrize(("kind", "threads"), [(kind, 1) for kind in KINDS] + [("llama", 2)])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_log_probs_are_the_learners_to_the_last_bit(kind, dtype, lora, threads):
    torch.set_num_threads(threads)
    try:
        tiny = policy(kind, dtype, temperature=0.9, ends=(0,), lora=lora)
        if threads == 1:
            trajectories = sample(tiny, [3, 17, 64, 50, 40, 115], 8, max_new_tokens=20)  # keys cross 64 and 128
            assert any(t.truncated for t in trajectories)
        else:  # small: two threads wait for each other on a busy machine
            trajectories = sample(tiny, [3, 62], 4, max_new_tokens=4)
        same_bits(tiny, trajectories, 12 if threads == 1 else 1)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampled_log_probs_are_the_learners_to_the_last_bit_smollm2(smollm2, dtype):
    if dtype == "bfloat16" and not NATIVE_BF16:
        pytest.skip("this processor does not compute bfloat16 natively")
    same_bits(smollm2(dtype), instruct_rollout(smollm2(dtype)), 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_completions_of_one_token_leave_long_prompts_whole(kind):
    tiny = policy(kind, ends=tuple(range(8)))
    trajectories = sample(tiny, [3, 70, 100, 130], 8, max_new_tokens=12)
    # the last ones move to other slots before the first step, when the cache holds prompts alone
    assert any(len(t) == 1 for t in trajectories[:8]) and len(trajectories[-1]) > 1
    same_bits(tiny, trajectories, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampling_weights_follow_an_update(dtype):
    tiny = policy("llama", dtype)
    with torch.no_grad():
        for parameter in tiny.trainable_parameters().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    tiny.weights_changed()
    same_bits(tiny, sample(tiny, [5, 9, 20], 4), 3)


# --- prompts, ends, contexts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_context_that_is_no_multiple_of_8_can_be_filled(kind):
    tiny, roomy = policy(kind, context=20), policy(kind, context=24)
    with torch.no_grad():
        state, wide = tiny.network.state_dict(), roomy.network.state_dict()
        for name, value in state.items():
            wide[name][: len(value)].copy_(value)
    short, same = (sample(p, [18, 3], max_new_tokens=2) for p in (tiny, roomy))
    assert [t.actions.tolist() for t in short] == [t.actions.tolist() for t in same]
    if kind == "llama":  # GPT-2's position table differs in its size
        assert relative_error(gradient(tiny, short)[1], gradient(roomy, same)[1]) == 0


def test_a_prompt_that_came_twice_runs_once_and_counts_twice():
    tiny = policy("gpt2", torch.float64)
    (prompt,) = prompts([9])
    twice = rewarded(generate(tiny, [prompt, TokenPrompt(7, prompt.tokens)], 4, Sampling(12)))
    agree_loss, expected = reference(tiny, twice)
    loss, found = gradient(tiny, twice)
    assert relative_error(found, expected) < 1e-10 and loss == pytest.approx(agree_loss)


@pytest.mark.parametrize(("generation_ends", "union"), [([1, 5], (0, 1, 5)), (1, (0, 1)), (None, (0,))])
def test_every_end_of_tokenizer_and_generation_config_ends_a_completion(tmp_path, generation_ends, union):
    loaded = load_causal_lm(write(tmp_path, "llama", generation_ends=generation_ends), dtype="float32")
    assert loaded.eos_token_ids == union
    last = {int(t.actions[-1]) for t in sample(loaded, [3, 8, 12], 16, 60) if t.terminated}
    assert last == set(union)


def test_a_cut_completion_is_another_outcome_than_an_ended_one():
    tiny = policy("gpt2")
    ended = [t for t in sample(tiny, [3, 8], 8, 30) if t.terminated and len(t) > 1]
    assert ended and all(int(t.actions[-1]) in ENDS for t in ended)
    batch = make_batch(ended)
    log_probs = tiny.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs.detach()
    cut_mask = batch.mask & torch.nn.functional.pad(batch.mask[:, 1:], (0, 1))
    cut = tiny.evaluate(batch.actions, cut_mask, ~batch.truncated, batch.inputs).log_probs.detach()
    assert torch.equal(cut, log_probs * cut_mask)  # up to the end they are the same, and then one action is more
    assert (log_probs.sum(1) < cut.sum(1)).all()
    assert (cut_mask.sum(1) == batch.lengths - 1).all()


def test_loading_keeps_float32_weights_and_refuses_a_folder_without_a_model(tmp_path):
    loaded = load_causal_lm(write(tmp_path / "model", "gpt2"), dtype="auto")
    assert {p.dtype for p in loaded.trainable_parameters().values()} == {torch.float32}
    built = policy("gpt2").trainable_parameters()
    assert all(torch.equal(p, built[n]) for n, p in loaded.trainable_parameters().items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        load_causal_lm(str(tmp_path / "empty"))


def test_a_frozen_copy_stays_where_it_was():
    tiny = policy("llama")
    frozen, batch = tiny.frozen_copy(), make_batch(sample(tiny, [4, 6], 2, 8))
    arguments = (batch.actions, batch.mask, batch.truncated, batch.inputs)
    before = copy.deepcopy(frozen.evaluate(*arguments).log_probs)
    with torch.no_grad():
        for parameter in tiny.trainable_parameters().values():
            parameter.mul_(1.1)
    tiny.weights_changed()
    assert torch.equal(frozen.evaluate(*arguments).log_probs, before) and not before.requires_grad
    assert not torch.equal(tiny.evaluate(*arguments).log_probs, before)

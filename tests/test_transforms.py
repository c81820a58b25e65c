"""Temperature, top-k, top-p and min-p change the policy: the same in sampling and learning, and the gradient is J's."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
from models import NATIVE_BF16, distribution, gradient, minibatch, policy, prompts, sample, write
from test_rollout import eager, p_value
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.config import merge
from logpi.learner import Learner
from logpi.metrics import step_metrics
from logpi.policies.mlp import MLP
from logpi.policies.token_log_probs import (
    CHUNK_ROWS,
    PLAIN,
    Transform,
    _TokenLogProbs,
    token_log_probs,
)
from logpi.rollout.engine import Sampling, generate
from logpi.rollout.self_test import self_test
from logpi.trajectory import Trajectory, make_batch

DTYPES = [torch.float32] + [torch.bfloat16] * NATIVE_BF16
TRANSFORMS = [
    Transform(top_k=3),
    Transform(top_p=0.7),
    Transform(min_p=0.2),
    Transform(temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
]
IDS = ["top_k", "top_p", "min_p", "all"]
named = pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)


# --- what is kept ----------------------------------------------------------------------------------------------------


def by_sorting(logits, transform):
    """Return log π of one row by the definition, token by token, in float64."""
    logits = logits.double() / transform.temperature
    order = logits.argsort(descending=True).tolist()
    kept = order[: transform.top_k] if transform.top_k else order
    chances = torch.softmax(logits[kept], 0).tolist()
    if transform.top_p < 1:
        mass, number = 0.0, 0
        while mass < transform.top_p and number < len(kept):
            mass, number = mass + chances[number], number + 1
        kept, chances = kept[:number], chances[:number]
    kept = [token for token, chance in zip(kept, chances, strict=True) if chance >= transform.min_p * chances[0]]
    out = torch.full_like(logits, -torch.inf)
    out[kept] = torch.log_softmax(logits[kept], 0)
    return out


def problem(rows, width=16, vocabulary=50, dtype=torch.float64, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shapes = [(rows, width), (vocabulary, width), (vocabulary,)]
    inputs = [torch.randn(s, generator=draws, dtype=torch.float64).to(dtype) * 0.7 for s in shapes]
    inputs[0][0] *= 10  # a row that is nearly certain, and one that is nearly uniform
    inputs[0][-1] *= 0.05
    return [x.requires_grad_() for x in inputs]


@named
@pytest.mark.parametrize("vocabulary", [50, 700, 5000])  # beyond 512 and 4096 the mass is found by sorting more
def test_kept_tokens_are_those_of_the_definition_and_of_transformers(transform, vocabulary):
    hidden, weight, bias = [x.detach() for x in problem(12, vocabulary=vocabulary)]
    bias *= vocabulary < 1000  # 5000 nearly equal tokens: the mass of the first 512 does not suffice
    found = distribution(hidden, weight, bias, transform)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = torch.stack([by_sorting(row, transform) for row in logits])
    assert torch.equal(found > -torch.inf, expected > -torch.inf)
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=1e-12, atol=1e-15)
    scores = TemperatureLogitsWarper(transform.temperature)(None, logits)
    for value, off, warper in (
        (transform.top_k, 0, TopKLogitsWarper),
        (transform.top_p, 1.0, TopPLogitsWarper),
        (transform.min_p, 0.0, MinPLogitsWarper),
    ):
        scores = scores if value == off else warper(value)(None, scores)
    assert torch.equal(found > -torch.inf, scores > -torch.inf)
    kept = (found > -torch.inf).sum(1)
    assert kept.min() >= 1 and kept.median() < vocabulary
    if vocabulary == 5000 and transform.top_p < 1 and not transform.top_k:
        assert kept.max() > 512


def test_ties_with_the_last_token_are_kept_and_off_is_off():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    one = torch.ones(1, 1)

    def kept(**options):
        return (distribution(one, logits.T, None, Transform(**options))[0] > -torch.inf).tolist()

    assert kept(top_k=2) == kept(top_p=0.5) == kept(min_p=0.3) == [True] * 4 + [False]
    assert kept(top_k=1) == kept(top_p=1e-9) == kept(min_p=0.999) == [True] + [False] * 4
    assert kept() == kept(top_k=5) == kept(top_k=99) == [True] * 5 and not Transform(0.7).cuts


def test_without_cuts_the_bits_are_those_of_the_plain_formula():
    hidden, weight, bias = [x.detach() for x in problem(CHUNK_ROWS, dtype=torch.float32)]
    logits = torch.nn.functional.linear(hidden, weight, bias) / 0.7
    shifted = logits - logits.amax(-1, keepdim=True)
    total = shifted.exp().sum(-1, keepdim=True)
    plain = shifted - total.log()
    actions = torch.arange(CHUNK_ROWS) % 50
    log_probs, entropies, _ = token_log_probs(
        hidden, weight, bias, actions, Transform(0.7), torch.float32, with_entropy=True
    )
    assert torch.equal(distribution(hidden, weight, bias, Transform(0.7)), plain)
    assert torch.equal(log_probs, plain.gather(1, actions[:, None])[:, 0])
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(1), rtol=1e-6, atol=1e-6)


@named
def test_rows_whose_logits_are_not_finite_stay_visible(transform):
    hidden, weight, bias = [x.detach() for x in problem(9, dtype=torch.float32)]
    sound = distribution(hidden, weight, bias, transform)
    hidden[3, 0] = torch.nan
    found = distribution(hidden, weight, bias, transform)
    rest = [i for i in range(9) if i != 3]
    assert torch.equal(found[rest], sound[rest]) and found[3].isnan().all()


# --- gradients of the chunked function -------------------------------------------------------------------------------


def drawn(hidden, weight, bias, transform):
    """Return an action of each row that the transform keeps, not always the likeliest."""
    found = distribution(hidden.detach(), weight.detach(), None if bias is None else bias.detach(), transform)
    ranks = found.argsort(1, descending=True)
    return ranks.gather(1, (torch.arange(len(found)) % (found > -torch.inf).sum(1))[:, None])[:, 0]


@pytest.mark.parametrize("transform", [PLAIN, Transform(0.7), *TRANSFORMS], ids=["off", "temperature", *IDS])
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=["log_probs", "entropies", "both"])
def test_gradcheck(transform, asked):
    inputs = problem(5, 3, 12, seed=2)
    actions = drawn(*inputs, transform)

    def function(*inputs):
        out = token_log_probs(*inputs, actions, transform, torch.float64, with_entropy=True)
        return tuple(out[i] for i in asked)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("transform", [PLAIN, *TRANSFORMS], ids=["off", *IDS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-11)])
def test_gradients_are_those_of_the_definition_over_several_chunks(transform, dtype, tolerance):
    rows = CHUNK_ROWS + 5
    inputs = problem(rows, dtype=dtype)
    actions = drawn(*inputs, transform)
    slopes = [torch.randn(rows, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in (1, 2)]
    out = token_log_probs(*inputs, actions, transform, dtype, with_entropy=True)
    found = torch.autograd.grad(out[:2], inputs, slopes)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    logits = torch.nn.functional.linear(*wide)
    kept = distribution(*[x.detach() for x in inputs], transform) > -torch.inf
    log_pi = torch.log_softmax((logits / transform.temperature).masked_fill(~kept, -torch.inf), -1)
    entropies = -torch.where(kept, log_pi.exp() * torch.where(kept, log_pi, 0.0), 0.0).sum(1)
    chosen = log_pi.gather(1, actions[:, None])[:, 0]
    expected = torch.autograd.grad((chosen, entropies), wide, [s.double() for s in slopes])
    for slope, wanted in zip(found, expected, strict=True):
        assert (slope - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_an_entropy_that_is_not_asked_costs_no_backward_of_its_own(monkeypatch):
    inputs = problem(20)
    seen = []
    real = _TokenLogProbs.backward
    monkeypatch.setattr(_TokenLogProbs, "backward", staticmethod(lambda ctx, *g: seen.append(g) or real(ctx, *g)))
    log_probs, entropies, _ = token_log_probs(
        *inputs, torch.zeros(20, dtype=torch.long), PLAIN, torch.float64, with_entropy=True
    )
    torch.autograd.grad(log_probs.sum(), inputs, retain_graph=True)
    torch.autograd.grad(entropies.sum(), inputs)
    assert [[g is None for g in pair] for pair in seen] == [[False, True, True], [True, False, True]]


def test_a_recorded_action_beyond_the_edge_is_kept():
    """Where bits differ, the sampler may have drawn a token that lies a rounding beyond the learner's edge."""
    weight = torch.tensor([[3.0], [2.0], [1.999], [0.0]])
    inputs = torch.ones(2, 1), weight.clone().requires_grad_(), None
    actions = torch.tensor([2, 0])
    log_probs, entropies, _ = token_log_probs(*inputs, actions, Transform(top_k=2), torch.float32, with_entropy=True)
    expected = [torch.log_softmax(weight[:3, 0], 0)[2], torch.log_softmax(weight[:2, 0], 0)[0]]
    torch.testing.assert_close(log_probs.detach(), torch.stack(expected))
    (slope,) = torch.autograd.grad(log_probs.sum() + entropies.sum(), inputs[1])
    assert slope.isfinite().all() and slope[3] == 0 and slope[2] != 0


def test_the_entropy_of_an_mlp_has_a_gradient():
    tiny = MLP(3, 4, (5,), seed=1)
    tiny.module.double()
    with torch.no_grad():
        tiny.module["policy"][-1].weight.mul_(100)
    observed = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True] * 3, [True] * 3])
    arguments = torch.zeros(2, 3, dtype=torch.long), mask, torch.zeros(2, dtype=torch.bool), tuple(observed)
    weight = tiny.module["policy"][0].weight

    def entropies(value):
        with torch.no_grad():
            weight.copy_(value)
        return tiny.evaluate(*arguments, with_entropy=True).entropies

    start, direction = weight.detach().clone(), torch.ones(5, 3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(entropies(start).sum(), weight)
    step = 1e-5 * direction
    with torch.no_grad():
        expected = float((entropies(start + step).sum() - entropies(start - step).sum()) / 2e-5)
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-6) and abs(expected) > 1e-3


# --- frequencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn_with", "expected_of", "fits"),
    [
        (Transform(top_k=3), Transform(top_k=3), True),
        (Transform(top_k=4), Transform(top_k=3), False),
        (Transform(top_p=0.75), Transform(top_p=0.75), True),
        (Transform(top_p=0.75), Transform(top_p=0.9), False),
        (Transform(min_p=0.3), Transform(min_p=0.3), True),
        (Transform(1.4, 5, 0.9, 0.1), Transform(1.4, 5, 0.9, 0.1), True),
        (Transform(1.4, 5, 0.9, 0.1), Transform(1.47, 5, 0.9, 0.1), False),
    ],
    ids=lambda value: value if isinstance(value, bool) else "-".join(str(v) for v in vars(value).values()),
)
def test_pairs_of_tokens_come_as_often_as_the_renormalised_distribution_says(drawn_with, expected_of, fits):
    tiny = policy("llama", vocabulary=6, ends=(), seed=3, **vars(drawn_with))
    (prompt,) = prompts([4], vocabulary=6)
    with torch.no_grad():
        rows = torch.cat([prompt.tokens.expand(6, -1), torch.arange(6)[:, None]], 1)
        logits = eager(tiny)(input_ids=rows).logits[:, -2:]
    log_pi = torch.stack([torch.stack([by_sorting(place, expected_of) for place in row]) for row in logits])
    expected = (log_pi[0, 0][:, None] + log_pi[:, 1]).exp().flatten()
    pairs = torch.stack(
        [t.actions for t in generate(tiny, [prompt], 10_000, Sampling(2, max_rows=10_000, max_keys=10_000 * 64))]
    )
    counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).double()
    outside, possible = int(counts[expected == 0].sum()), expected > 0
    p = p_value(counts[possible], expected[possible])
    print(f"p = {p:.3g}, {outside} outside of {int(possible.sum())} pairs")
    assert (p > 1e-3 and outside == 0) == fits


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", DTYPES)
@named
def test_sampled_log_probs_are_the_learners_to_the_last_bit(kind, dtype, transform):
    tiny = policy(kind, dtype, ends=(0,), **vars(transform))
    trajectories = sample(tiny, [3, 17, 64, 50], 6, max_new_tokens=16)
    assert len({len(t) for t in trajectories}) > 2
    whole = make_batch(trajectories)
    entropies = torch.nn.utils.rnn.pad_sequence([t.entropies for t in trajectories], batch_first=True)
    assert entropies.isfinite().all() and entropies[whole.mask].max() > 0
    num = len(trajectories)
    for rows in (torch.arange(num), torch.arange(num).flip(0)[: num // 2], torch.tensor([5])):
        part = whole.select(rows)
        out = tiny.evaluate(part.actions, part.mask, part.truncated, part.inputs, with_entropy=True)
        assert float((out.log_probs.detach() - part.behavior_log_probs).abs().max()) == 0.0
        assert torch.equal(out.entropies, entropies[rows][:, : part.mask.shape[1]])
    assert self_test(tiny).is_exact


@named
def test_greedy_completions_take_no_notice(transform):
    asked = prompts([3, 9, 17])
    plain, cut = (generate(policy("llama", **vars(t)), asked, 1, Sampling(12, greedy=True)) for t in (PLAIN, transform))
    for a, b in zip(plain, cut, strict=True):
        assert torch.equal(a.actions, b.actions) and torch.equal(a.behavior_log_probs, b.behavior_log_probs)


# --- truth: the gradient of J ----------------------------------------------------------------------------------------

VOCABULARY = 6


def reward(tokens):
    return 1.0 + torch.sin(torch.tensor(3.0 * tokens[0] + 7.0 * len(tokens) + sum(tokens), dtype=torch.float64))


def log_policies(network, prompt, transform):
    """Return log π of the first token and of the second after each first one, from transformers' own forward."""
    rows = torch.cat([prompt.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], 1)
    logits = network(input_ids=rows).logits[:, -2:]
    flat = torch.cat([logits[:1, 0], logits[:, 1]]) / transform.temperature
    kept = torch.stack([by_sorting(row.detach() * transform.temperature, transform) > -torch.inf for row in flat])
    return torch.log_softmax(flat.masked_fill(~kept, -torch.inf), -1), kept


def exact(tiny, prompt, transform, end):
    """Return {completion: probability} and ∇J of J = Σ_y π(y) R(y), by autograd through the sum; no score function."""
    network = eager(tiny)
    log_pi, kept = log_policies(network, prompt, transform)
    outcomes = {}
    for first, second in product(range(VOCABULARY), repeat=2):
        if kept[0, first] and first == end:
            outcomes[(first,)] = log_pi[0, first].exp()
        elif kept[0, first] and kept[1 + first, second]:
            outcomes[first, second] = (log_pi[0, first] + log_pi[1 + first, second]).exp()
    assert float(sum(outcomes.values()).detach()) == pytest.approx(1.0, abs=1e-12)
    objective = sum(chance * reward(y) for y, chance in outcomes.items())
    parameters = dict(network.named_parameters())
    slopes = torch.autograd.grad(objective, list(parameters.values()))
    return {y: float(chance.detach()) for y, chance in outcomes.items()}, dict(zip(parameters, slopes, strict=True))


def mean_score_gradient(tiny, prompt, outcomes, end):
    """Return −E[∇loss] of the learner's REINFORCE over all outcomes, each weighted by its probability."""
    trajectories = [
        Trajectory(
            prompt_uid=0,
            sample=i,
            group=0,
            policy_version=0,
            actions=torch.tensor(y),
            behavior_log_probs=torch.zeros(len(y), dtype=torch.float64),
            entropies=torch.zeros(len(y), dtype=torch.float64),
            inputs=prompt,
            terminated=y[-1] == end,
            truncated=y[-1] != end,
            rewards=torch.tensor(
                [*[0.0] * (len(y) - 1), float(reward(y)) * chance * len(outcomes)], dtype=torch.float64
            ),
        )
        for i, (y, chance) in enumerate(outcomes.items())
    ]
    _, found = gradient(tiny, trajectories, "reinforce")
    return {name: -slope for name, slope in found.items()}


def error(found, expected):
    difference = sum(float((found[n] - expected[n]).square().sum()) for n in expected) ** 0.5
    return difference / sum(float(g.square().sum()) for g in expected.values()) ** 0.5


@pytest.mark.parametrize(
    "transform",
    [Transform(0.7), Transform(top_k=3), Transform(top_p=0.9), Transform(min_p=0.02), Transform(1.5, 4, 0.9, 0.05)],
    ids=["temperature", *IDS],
)
def test_the_mean_gradient_is_that_of_the_transformed_policys_mean_reward(transform):
    """The renormalised log-prob gives ∇J; that of the whole vocabulary, or at temperature 1, another direction."""
    tiny = policy("gpt2", torch.float64, vocabulary=VOCABULARY, seed=4, **vars(transform))
    (prompt,), end = prompts([4], vocabulary=VOCABULARY), 5
    outcomes, expected = exact(tiny, prompt.tokens, transform, end)
    assert transform.cuts == (len(outcomes) < 31)
    found = error(mean_score_gradient(tiny, prompt.tokens, outcomes, end), expected)
    tiny.transform = Transform(transform.temperature) if transform.cuts else PLAIN  # the log-prob that was not drawn by
    wrong = error(mean_score_gradient(tiny, prompt.tokens, outcomes, end), expected)
    print(f"{len(outcomes)} outcomes: error {found:.1e}, of the untransformed log-prob {wrong:.0%}")
    assert found <= 1e-9 and wrong >= 0.1


# --- a whole update --------------------------------------------------------------------------------------------------


@named
def test_entropy_is_finite_in_the_metrics(transform):
    tiny = policy("llama", **vars(transform))
    trajectories = sample(tiny, [3, 17, 9], 4, max_new_tokens=10)
    learner = Learner(tiny, get_algorithm("rloo"), learning_rate=1e-3)
    batch = minibatch(learner, trajectories)
    update = learner.update(learner.backward(batch), 0)
    metrics = step_metrics(trajectories, batch, [update])
    assert update.skipped is None and metrics["mismatch/max"] == 0.0 and update.norm > 0
    assert 0 < metrics["entropy"] < torch.log(torch.tensor(30.0))


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_strict_run_with_everything_on_and_samples_of_what_it_trained(tmp_path):
    options = {"temperature": 1.5, "top_k": 4, "top_p": 0.95, "min_p": 0.02}
    folder = tmp_path / "run"
    api.train(
        model=write(tmp_path / "model", "llama"), data=[{"prompt": f"{n}+{'1' * (n % 7)}="} for n in range(16)],
        rewards=lambda completions, **_: [len(set(text)) / 9 for text in completions], run=folder, max_steps=2,
        strict=True, policy={"dtype": "float32", **options}, learner={"learning_rate": 3e-3},
        rollout={"num_prompts": 3, "num_generations": 4, "max_completion_length": 12},
    )  # fmt: skip
    metrics, checks = rows(folder, "metrics.jsonl"), rows(folder, "evaluations.jsonl")
    assert all(row["mismatch/max"] == 0.0 and row["grad_norm"] > 0 for row in metrics)
    assert all(0 < row["entropy"] < math.log(5) for row in metrics)  # of 4 tokens, or 5 with a tie
    assert math.isfinite(checks[-1]["entropy"]) and 0 < checks[-1]["kl_to_start"] < 1
    found = api.sample_run(str(folder), "1+1=", num=20)
    assert all(f["surprisal"] > 0.5 * f["tokens"] for f in found)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(merge(config, {"policy": {"top_k": 1}})))
    assert all(f["surprisal"] < 0.1 * f["tokens"] for f in api.sample_run(str(folder), "1+1=", num=3))  # bf16 has ties

"""The oracle, judged: an enumeration written anew in NumPy, closed forms, and a broken estimator that must be seen."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement, product
from pathlib import Path

import numpy as np
import pytest
import torch

from logpi import api, build, cli, estimators, losses
from logpi.algorithms import ALGORITHMS, get_algorithm, register
from logpi.config import COMPARE_WITHIN_GROUPS
from logpi.credit import assign_credit
from logpi.errors import InputError
from logpi.exact import TabularPolicy, baselines, measure, tabular, verdict
from logpi.learner import Learner
from logpi.trajectory import make_batch

EXACT_ROWS = {"reinforce", "reinforce_to_go", "reinforce_baseline", "reinforce_moving", "remax", "rloo", "opo", "mixer"}
BY_VALUE = ("ppo", "a2c", "v_trace", "ppo_by_turn")
OWN = Path(__file__).parents[1] / "examples" / "own_algorithm.py"

# --- in NumPy, from the formulas alone ------------------------------------------------------------------------------

PREFIXES = [p for n in range(3) for p in product((1, 2), repeat=n)]
ENDED = [(*p, 0) for p in PREFIXES] + list(product((1, 2), repeat=3))


def by_hand(name, returns, to_go, lengths, values, members, log_probs, greedy):
    """Return (advantage of each action, weight of each action) of one group, as lists over its members."""
    g = len(returns)
    mean = returns.mean()
    others = [(returns.sum() - r) / (g - 1) for r in returns]
    spread = returns.std(ddof=1)
    each = {
        "reinforce": lambda i: returns[i],
        "reinforce_moving": lambda i: returns[i] - 0.7,
        "remax": lambda i: returns[i] - greedy,
        "rloo": lambda i: returns[i] - others[i],
        "mixer": lambda i: np.where(np.arange(lengths[i]) == 0, 1.0, returns[i] - others[i]),  # the first is given
        "grpo": lambda i: 0.0 if spread == 0 else (returns[i] - mean) / (spread + 1e-4),
        "dr_grpo": lambda i: returns[i] - mean,
        "opo": lambda i: returns[i] - (lengths @ returns - lengths[i] * returns[i]) / (lengths.sum() - lengths[i]),
        "maxrl": lambda i: (returns[i] - mean) / mean if mean else 0.0,
        "reinforce_pp": lambda i: (returns[i] - mean) / (returns.std() + 1e-8),
    }
    each |= {
        "gspo": each["grpo"],
        "cispo": each["grpo"],
        "dapo": each["grpo"],
        "reinforce_pp_baseline": each["reinforce_pp"],
    }
    if name == "reinforce_to_go":
        advantages = to_go
    elif name == "reinforce_baseline":
        advantages = [np.empty(n) for n in lengths]
        for i, t in [(m, t) for m in range(g) for t in range(lengths[m])]:
            running = [to_go[j][t] for j in range(g) if j != i and lengths[j] > t]
            ran = [x for j in range(g) if j != i for x in to_go[j]]
            advantages[i][t] = to_go[i][t] - (np.mean(running) if running else np.mean(ran))
    elif name == "minimum_risk":
        q = np.exp(0.005 * log_probs) / [members.count(m) for m in members]
        q /= q.sum()
        advantages = [np.full(n, 0.005 * g * q[i] * (returns[i] - q @ returns)) for i, n in enumerate(lengths)]
    elif name in BY_VALUE:
        advantages = values  # the value rows' own, see below
    else:
        advantages = [np.full(n, 1.0) * each[name](i) for i, n in enumerate(lengths)]
    weight = {
        "grpo": lambda n: 1 / (g * n), "gspo": lambda n: 1 / (g * n), "dr_grpo": lambda n: 1 / (g * 256.0),
        "cispo": lambda n: 1 / lengths.sum(), "reinforce_pp": lambda n: 1 / lengths.sum(),
        "dapo": lambda n: 1 / lengths.sum(),
        "reinforce_pp_baseline": lambda n: 1 / lengths.sum(), "ppo": lambda n: 1 / lengths.sum(),
        "ppo_by_turn": lambda n: 1 / lengths.sum(),
        "a2c": lambda n: 1 / lengths.sum(), "v_trace": lambda n: 1 / lengths.sum(),
    }.get(name, lambda n: 1 / g)  # fmt: skip
    return advantages, [np.full(n, weight(n)) for n in lengths]


def in_numpy(name: str, kind: str, logits: np.ndarray, v: np.ndarray):
    """Return (exact gradient, completions' probabilities, function from prompt and members to a group's gradient)."""
    pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    at = [[PREFIXES.index(y[:t]) for t in range(len(y))] for y in ENDED]
    chance = np.array([[np.prod([pi[x, s, a] for s, a in zip(at[i], y)]) for i, y in enumerate(ENDED)] for x in (0, 1)])
    reward = [[np.array(tabular.rewards(kind, x, i)) for i in range(15)] for x in (0, 1)]
    scores = np.zeros((2, 15, 3, *pi.shape))  # [prompt, completion, time, ...]: ∇log π of each action
    for x, i in product((0, 1), range(15)):
        for t, (s, a) in enumerate(zip(at[i], ENDED[i])):
            scores[x, i, t, x, s] = np.eye(3)[a] - pi[x, s]
    exact = sum(chance[x, i] * reward[x][i].sum() * scores[x, i].sum(0) for x in (0, 1) for i in range(15)) / 2
    if name == "mixer":  # ∇log π(y*_1) + ∇E[R | y*_1], of the completions that begin with the solution's first token
        first = (1, 2)
        through = np.array([[y[0] == first[x] for y in ENDED] for x in (0, 1)])
        chance = through * chance / (through * chance).sum(1, keepdims=True)
        exact = sum(
            chance[x, i] * (scores[x, i, 0] + reward[x][i].sum() * scores[x, i, 1:].sum(0))
            for x in (0, 1)
            for i in range(15)
        ) / 2  # fmt: skip
    lengths = np.array([len(y) for y in ENDED])

    def credit(x, i):
        """The value rows' advantages: GAE with λ 0.95, and the return minus V (5 steps reach every end)."""
        own, out = v[x][at[i]], np.zeros(lengths[i])
        running = 0.0
        for t in reversed(range(lengths[i])):
            after = own[t + 1] if t + 1 < lengths[i] else 0.0
            running = reward[x][i][t] + after - own[t] + 0.95 * running
            out[t] = running if name == "ppo" else reward[x][i][t:].sum() - own[t]
        return np.full(lengths[i], reward[x][i].sum() - own[0]) if name == "ppo_by_turn" else out  # one turn

    likeliest = []
    for x in (0, 1):  # the reward of the completion of likeliest actions
        y = ()
        while y not in ENDED:
            y += (int(pi[x, PREFIXES.index(y)].argmax()),)
        likeliest.append(reward[x][ENDED.index(y)].sum())
    to_go = [[np.cumsum(reward[x][i][::-1])[::-1] for i in range(15)] for x in (0, 1)]

    def gradient(x: int, m: list[int]) -> np.ndarray:
        returns = np.array([reward[x][i].sum() for i in m])
        values = [credit(x, i) for i in m] if name in BY_VALUE else None
        own = np.log(np.maximum(chance[x, m], 1e-300))
        a, w = by_hand(name, returns, [to_go[x][i] for i in m], lengths[m], values, m, own, likeliest[x])
        return sum(np.tensordot(a[k] * w[k], scores[x, i, : lengths[i]], 1) for k, i in enumerate(m))

    return exact, chance, gradient


def numpy_figures(name: str, kind: str, logits: np.ndarray, v: np.ndarray) -> tuple[float, float, float, float]:
    """Return (relative error, scale, off direction, variance) of a row, everything enumerated in NumPy."""
    exact, chance, gradient = in_numpy(name, kind, logits, v)
    mean, square = np.zeros_like(logits), 0.0
    for x in (0, 1):
        for members in combinations_with_replacement(range(15), 4):
            m = list(members)
            ways = math.factorial(4) / math.prod(math.factorial(n) for n in Counter(m).values())
            p = ways * np.prod(chance[x, m]) / 2
            if not p:
                continue
            g = gradient(x, m)
            mean += p * g
            square += p * (g**2).sum()
    scale = (mean * exact).sum() / (exact**2).sum()
    norm = np.linalg.norm(exact)
    size = (mean**2).sum()
    return np.linalg.norm(mean - exact) / norm, scale, np.linalg.norm(mean / scale - exact) / norm, square / size - 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_figure_is_that_of_an_enumeration_in_numpy(name, kind):
    policy = TabularPolicy()
    found = measure(get_algorithm(name), kind)
    expected = numpy_figures(name, kind, policy.logits.detach().numpy(), tabular.wrong_values().numpy())
    assert (found.relative_error, found.scale, found.off_direction, found.variance) == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_gradient_of_a_group_is_the_one_worked_out_by_hand(name):
    """Six groups of each row, ragged, one of them with a completion twice: batch, advantage, loss and backward against
    NumPy. Rewards at every action, for rows that tell them apart."""
    row, values = get_algorithm(name), tabular.wrong_values()
    policy = TabularPolicy(values if row.uses_values else None)
    learner = Learner(policy, row, learning_rate=1.0, value_coef=0.0)
    learner.moving_baseline = 0.7
    draws = np.random.default_rng(0)
    dense = "to_go" in name or name == "reinforce_baseline" or row.uses_values
    _, _, gradient = in_numpy(name, "dense" if dense else "real", policy.logits.detach().numpy(), values.numpy())
    for place in range(6):
        x, members = place % 2, [int(i) for i in draws.integers(15, size=4)]
        members = [*members[:3], members[0]] if place == 3 else members
        kind = "dense" if dense else "real"
        group = [tabular.trajectory(policy, kind, x, i, 0, s) for s, i in enumerate(members)]
        group = [replace(t, num_given=int(row.uses_solutions)) for t in group]
        if row.baseline == "greedy":
            best = tabular.trajectory(policy, kind, x, tabular.likeliest(policy, x), 0, 0)
            group.append(replace(best, is_baseline=True))
        batch = assign_credit(row, learner.annotate(make_batch(group), several_updates=False))
        learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
        np.testing.assert_allclose(-policy.logits.grad.numpy(), gradient(x, members), rtol=1e-10, atol=1e-14)


# --- classes --------------------------------------------------------------------------------------------------------


def test_the_fixture_is_what_it_says():
    policy = TabularPolicy()
    chance = tabular.probabilities(policy)
    torch.testing.assert_close(chance.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-14)
    low, high = tabular.mean_rewards(policy, "binary").tolist()
    assert low < 0.3 and high > 0.7 and {len(y) for y in tabular.COMPLETIONS} == {1, 2, 3}
    for kind in tabular.REWARDS:  # and once more by central differences
        exact, direction = tabular.exact_gradient(policy, kind), torch.randn(policy.logits.shape, dtype=torch.float64)
        with torch.no_grad():
            policy.logits += 1e-6 * direction
            up = tabular.mean_rewards(policy, kind).mean()
            policy.logits -= 2e-6 * direction
            down = tabular.mean_rewards(policy, kind).mean()
            policy.logits += 1e-6 * direction
        assert float((exact * direction.flatten()).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-6)


@pytest.mark.timeout(900)  # 106 seconds where nothing runs beside it
def test_the_command_proves_what_is_exact_and_measures_what_is_not(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["prove", "--json"])
    assert exit.value.code == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert list(dict.fromkeys(row["name"] for row in rows)) == list(ALGORITHMS)
    assert set(rows[0]) == {
        "name", "rewards", "group_size", "class", "relative_error", "scale", "off_direction", "variance",
    }  # fmt: skip
    for name in ALGORITHMS:
        own = [row for row in rows if row["name"] == name]
        if name in EXACT_ROWS:
            assert all(r["class"] == "exact" and r["relative_error"] <= 1e-9 and r["scale"] == 1 for r in own) or all(
                r["relative_error"] <= 1e-9 for r in own
            )
        elif name == "dr_grpo":
            assert all(r["class"] == "exact up to a constant" and r["off_direction"] <= 1e-9 for r in own)
            assert all(r["scale"] == pytest.approx(3 / 4 / 256, rel=1e-12) for r in own)  # (G−1)/G, over the budget
        else:
            assert all(r["class"] == "biased" for r in own) and max(r["off_direction"] for r in own) >= 1e-3
    variance = {(row["name"], row["rewards"]): row["variance"] for row in rows}
    assert variance["rloo", "real"] < 0.5 * variance["reinforce", "real"]  # what the baseline is for


def test_a_value_function_is_exact_with_lambda_1_or_the_exact_values():
    row = replace(get_algorithm("ppo"), reduction=losses.per_trajectory)
    assert measure(row.with_options(gae_lambda=1.0), "dense").relative_error <= 1e-9
    assert measure(row.with_options(gae_lambda=0.6), "dense", values="exact").relative_error <= 1e-9
    assert measure(row.with_options(gae_lambda=0.6), "dense").relative_error > 0.01
    a2c = replace(get_algorithm("a2c"), reduction=losses.per_trajectory)
    assert measure(a2c.with_options(n_steps=3), "dense").relative_error <= 1e-9  # it reaches every end
    assert measure(a2c.with_options(n_steps=1), "dense", values="exact").relative_error <= 1e-9
    assert measure(a2c.with_options(n_steps=1), "dense").relative_error > 0.01


def test_a_broken_estimator_is_reported_as_biased():
    def own_reward_in_the_baseline(rewards, mask, group, values=None, final_values=None):
        good = estimators.leave_one_out(rewards, mask, group)
        return good - 0.1 * rewards.sum(1, keepdim=True) * mask * (mask.sum(1, keepdim=True) > 1)

    row = replace(get_algorithm("rloo"), name="broken", advantage=own_reward_in_the_baseline)
    assert verdict([measure(row, kind) for kind in ("binary", "real")]) == "biased"


def test_maxrl_climbs_the_logarithm_to_the_order_of_its_group():
    """Its mean is Σ_{k<G} (1−p)^{k−1} ∇p: the truncated series of ∇log p."""
    policy, size = TabularPolicy(), 4
    rates = tabular.mean_rewards(policy, "binary")
    weights = [sum((1 - p.item()) ** (k - 1) for k in range(1, size)) for p in rates]
    parts = [tabular.flat_gradient(p, policy, retain_graph=True) for p in rates]
    expected = sum(w * g for w, g in zip(weights, parts)) / 2
    exact = tabular.exact_gradient(policy, "binary")
    found = measure(get_algorithm("maxrl"), "binary", size)
    assert found.scale == pytest.approx(float((expected * exact).sum() / (exact * exact).sum()), rel=1e-12)
    assert found.relative_error == pytest.approx(float((expected - exact).norm() / exact.norm()), rel=1e-12)


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("rate", [0.03, 0.4, 0.73])
def test_grpo_is_the_gradient_of_a_known_objective(size, rate):
    """0/1 rewards, ddof 1, ε = 0, a constant denominator: E[ĝ] = f_G(p) ∇p. Two outcomes suffice: right, wrong."""
    row = replace(get_algorithm("grpo"), reduction=losses.per_trajectory).with_options(std_epsilon=0.0)
    logit = torch.tensor(math.log(rate / (1 - rate)), dtype=torch.float64, requires_grad=True)
    mean = 0.0
    for right in range(size + 1):
        chance = math.comb(size, right) * rate**right * (1 - rate) ** (size - right)
        rewards = torch.tensor([[1.0]] * right + [[0.0]] * (size - right), dtype=torch.float64)
        mask, group = torch.ones(size, 1, dtype=torch.bool), torch.zeros(size, dtype=torch.long)
        log_probs = torch.nn.functional.logsigmoid(torch.where(rewards == 1, logit, -logit))
        advantages = row.advantage(rewards, mask, group, **row.options_of(row.advantage))
        loss = (row.surrogate(log_probs, log_probs.detach(), advantages, mask) * row.token_weights(mask)).sum()
        mean -= chance * float(torch.autograd.grad(loss, logit)[0])
    p = rate
    f = sum(
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k) * (size - 1) / size) / size
        for k in range(1, size)
    ) / (p * (1 - p))
    assert mean == pytest.approx(f * p * (1 - p), rel=1e-12)  # ∇p = p(1−p)


def test_what_epsilon_and_the_length_do_to_that_objective():
    """The figures of docs/algorithms.md: prompts of unlike pass rates, completions of unlike lengths."""
    policy, size = TabularPolicy(), 4
    rates = tabular.mean_rewards(policy, "binary")
    target = torch.zeros(())
    for p in rates:
        rate = p.item()
        f = sum(
            math.comb(size, k)
            * rate**k
            * (1 - rate) ** (size - k)
            * math.sqrt(k * (size - k) * (size - 1) / size)
            / size
            for k in range(1, size)
        ) / (rate * (1 - rate))
        target = target + f * tabular.flat_gradient(p, policy, retain_graph=True) / 2
    shipped = get_algorithm("grpo")
    constant = replace(shipped, reduction=losses.per_trajectory)
    assert measure(constant.with_options(std_epsilon=0.0), exact=target).relative_error <= 1e-12
    assert measure(constant, exact=target).relative_error == pytest.approx(1.9e-4, rel=0.05)
    assert measure(constant.with_options(std_epsilon=0.1), exact=target).relative_error == pytest.approx(0.16, rel=0.05)
    own_length = measure(shipped, exact=target)
    assert own_length.relative_error == pytest.approx(0.29, rel=0.05)
    assert own_length.off_direction == pytest.approx(0.23, rel=0.05)


# --- the baseline of least variance ---------------------------------------------------------------------------------


def test_the_optimal_baseline_is_best_when_known_and_worse_than_the_mean_when_estimated():
    """The figures of docs/algorithms.md; what rows can be sampled must be what `prove` measures."""
    policy, names = TabularPolicy(), ("mean", "by_length", "optimal")
    weight, none = baselines.weights(policy), torch.zeros(2, dtype=torch.float64)
    listed = {"binary": ([5.14, 5.41, 4.63], [6.14, 6.00, 7.01]), "real": ([3.96, 4.20, 3.65], [4.89, 4.69, 5.38])}
    for kind, (known, left_out) in listed.items():
        found = [baselines.known_baseline(weight[n], policy, kind) for n in names]
        assert [baselines.variance_with(b, policy, kind) for b in found] == pytest.approx(known, abs=0.005)
        left = {n: baselines.variance_left_out(weight[n], policy, kind) for n in names}
        assert list(left.values()) == pytest.approx(left_out, abs=0.005)
        for name, row in (("mean", "rloo"), ("by_length", "opo")):
            assert left[name] == pytest.approx(measure(get_algorithm(row), kind).variance, rel=1e-12)
        reinforce = measure(get_algorithm("reinforce"), kind).variance
        assert baselines.variance_with(none, policy, kind) == pytest.approx(reinforce, rel=1e-12)
        for step in (torch.tensor([0.01, 0.0]), torch.tensor([0.0, 0.01])):  # a minimum in each prompt's baseline
            best = baselines.variance_with(found[2], policy, kind)
            assert min(baselines.variance_with(found[2] + s * step, policy, kind) for s in (1, -1)) > best


# --- rows of one's own ----------------------------------------------------------------------------------------------


def test_an_estimator_of_ones_own_takes_one_function_and_one_row(tmp_path, capsys):
    file = tmp_path / "median.py"
    file.write_text("""
import torch
from logpi.algorithms import Algorithm, register
from logpi.losses import per_trajectory, score_function

def above_the_others_best(rewards, mask, group, values=None, final_values=None, *, margin: float = 0.0):
    totals = rewards.sum(1)
    best = torch.stack([totals[(group == g) & (torch.arange(len(group)) != i)].max() for i, g in enumerate(group)])
    return ((totals - best - margin)[:, None] * mask).detach()

cells = (above_the_others_best, score_function, per_trajectory)
row = Algorithm("best_of", *cells, kl="k1_in_reward", source="me", uses_groups=True)
register(row)
""")
    with pytest.raises(SystemExit) as exit:
        cli.main(["prove", "--module", str(file), "--algorithm", "best_of", "--json"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert exit.value.code == 0 and [row["class"] for row in rows] == ["exact", "exact"]  # a baseline from others only
    chosen = {"name": "best_of", "options": {"margin": 0.5}, "gamma": None, "gae_lambda": None}
    _, _, algorithm = api.build(api.resolve("cartpole", {"modules": [str(file)], "algorithm": chosen}))
    assert algorithm.options == {"margin": 0.5} and "above_the_others_best" in algorithm.formula()


def test_the_examples_are_proven_and_train(tmp_path):
    build.load_modules([str(OWN)])
    names = [name for name in ALGORITHMS if name in ("sapo", "gmpo", "luspo", "dppo", "ipo")]
    assert len(names) == 5
    figures = {name: measure(get_algorithm(name), "real") for name in (*names, "gspo", "cispo")}
    for same, as_ in (
        ("sapo", "gspo"),
        ("gmpo", "gspo"),
        ("dppo", "cispo"),
        ("ipo", "cispo"),
    ):  # on-policy they are one
        assert figures[same].relative_error == pytest.approx(figures[as_].relative_error, rel=1e-12)
    assert figures["luspo"].off_direction != figures["gspo"].off_direction  # no 1/length any more


def test_a_row_that_does_not_fit_is_refused():
    def few(rewards, mask):
        return rewards

    def open_option(log_probs, old_log_probs, advantages, mask, *, tau):
        return log_probs

    good = get_algorithm("rloo")
    for change, message in (
        ({"name": "rloo"}, 'algorithm "rloo" exists already'),
        ({"name": "x", "advantage": few}, r"its advantage takes \(rewards, mask\)"),
        ({"name": "x", "surrogate": open_option}, 'the option "tau" of its surrogate has no default'),
        ({"name": "x", "kl": "k4_in_loss"}, 'kl="k4_in_loss"'),
    ):
        with pytest.raises(InputError, match=message):
            register(replace(good, **change))


def test_the_table_and_the_configuration_agree_on_what_needs_groups():
    assert set(COMPARE_WITHIN_GROUPS) == {row.name for row in ALGORITHMS.values() if row.uses_groups}


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_micro_batches_prompts_and_padding_change_no_row(name):
    """A batch of ragged groups: whole, cut into micro-batches, its rows in another order, wider than it must be."""
    row = get_algorithm(name)
    policy = TabularPolicy(tabular.wrong_values() if row.uses_values else None)
    draw = torch.Generator().manual_seed(3)
    members = torch.randint(15, (6, 4), generator=draw)
    trajectories = [
        tabular.trajectory(policy, "real", g % 2, int(i), g, s) for g in range(6) for s, i in enumerate(members[g])
    ]

    def gradient(tokens: int, order: list[int], wider: int) -> torch.Tensor:
        learner = Learner(policy, row, learning_rate=1.0, micro_batch_tokens=tokens)
        batch = make_batch([trajectories[i] for i in order] + trajectories[24:])
        if wider:
            pad = torch.nn.functional.pad
            batch = replace(batch, **{
                n: pad(v, (0, wider)) for n, v in vars(batch).items() if isinstance(v, torch.Tensor) and v.ndim == 2
            })  # fmt: skip
        batch = assign_credit(row, learner.annotate(batch, several_updates=False))
        learner.backward(replace(batch, token_weights=row.token_weights(batch.mask)))
        return policy.logits.grad.clone()

    trajectories = [replace(t, num_given=int(row.uses_solutions)) for t in trajectories]
    if row.baseline == "greedy":
        likeliest = [
            tabular.trajectory(policy, "real", g % 2, tabular.likeliest(policy, g % 2), g, 0) for g in range(6)
        ]
        trajectories += [replace(t, is_baseline=True) for t in likeliest]
    order = list(range(24))
    whole = gradient(10**6, order, 0)
    assert float(whole.norm()) > 0
    shuffled = torch.randperm(24, generator=draw).tolist()
    for tokens, rows, wider in ((8, order, 0), (25, shuffled, 0), (10**6, shuffled, 5), (8, shuffled, 2)):
        torch.testing.assert_close(gradient(tokens, rows, wider), whole, rtol=1e-10, atol=1e-12)

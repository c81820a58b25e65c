"""Rewards paid token by token: the same sums, the same gradient on average, and what is asked of reward functions."""

from __future__ import annotations

import math
import re

import pytest
import torch
from models import write

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.build import algorithm_of
from logpi.errors import InputError, RewardError
from logpi.exact import tabular
from logpi.exact.bias import measure
from logpi.objective import objective

PROMPTS = [{"prompt": f"{n}+{n % 5}=", "key": n} for n in range(40)]
CALLS: list[tuple[list[str], list[bool] | None]] = []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", "llama")


def varied(completions, key, partial=None, **_):
    """A score of text and row, no multiple of a power of two; none of a beginning whose length is a multiple of 3."""
    CALLS.append((list(completions), partial))
    return [None if len(t) % 3 == 0 and partial else (sum(map(ord, t)) + k) % 11 / 10 for t, k in zip(completions, key)]


def experience(tiny, function=varied, **reward):
    return api.build(
        api.make_config(
            {
                "task": {"name": "custom", "data": PROMPTS, "rewards": function},
                "policy": {"model": tiny},
                "rollout": {"max_completion_length": 10},
                "reward": {"dense": True, **reward},
                "algorithm": {"name": "reinforce_baseline"},
            }
        )
    )[0]


def test_a_token_is_paid_what_it_adds(tiny):
    made = experience(tiny)
    sampled = made.sample(0, 0, range(8))
    CALLS.clear()
    found = made.reward(sampled)
    (whole, told), (asked, partial) = CALLS
    assert told is None and partial == [True] * len(asked)
    assert sorted(whole) == sorted(made.writer.text(t) for t in sampled)
    decode, lengths, unscored = made.policy.tokenizer.decode, set(), 0
    for t in found:
        key, worth = made.problems[t.prompt_uid].columns["key"], [0.0]
        for length in range(1, len(t) + 1):
            is_whole = length == len(t)
            text = made.writer.text(t) if is_whole else decode(t.actions[:length].tolist(), skip_special_tokens=True)
            value = varied([text], [key], None if is_whole else [True])[0]
            worth.append(worth[-1] if value is None else value)
            unscored += value is None and worth[-1] > 0
        assert t.rewards.tolist() == pytest.approx(torch.tensor(worth, dtype=torch.float64).diff().tolist(), abs=2e-12)
        assert t.rewards_by_name["varied"] == worth[-1]
        lengths.add(len(t))
    assert 10 in lengths and min(lengths) < 10, "completions that end and that are cut"
    assert unscored, "beginnings that no function scores, behind some that one did"


def test_equal_scores_are_equal_sums(tiny):
    """0.1 + 0.2 is not 0.3 in binary: sums of differences are, of multiples of a power of two."""
    made = experience(tiny, lambda completions, partial=None, **_: [0.3 if partial is None else len(t) % 7 / 10
                                                                      for t in completions])  # fmt: skip
    sums = {float(t.rewards.sum()) for t in made.reward(made.sample(0, 0, range(8)))}
    assert len(sums) == 1 and sums.pop() == pytest.approx(0.3, abs=1e-12)


def test_a_function_that_fails_on_a_beginning(tiny):
    def fails(completions, partial=None, **_):
        if partial and any(len(text) > 3 for text in completions):
            raise ValueError("too early to say")
        return [float(len(text)) for text in completions]

    made = experience(tiny, fails)
    sampled = made.sample(0, 0, range(8))
    with pytest.raises(RewardError, match="too early to say"):
        made.reward(sampled)
    for t in experience(tiny, fails, on_failure="exclude").reward(sampled):
        assert float(t.rewards.sum()) == pytest.approx(len(made.writer.text(t)), abs=1e-9)


@pytest.mark.parametrize("name", ["reinforce_to_go", "reinforce_baseline"])
def test_the_gradient_is_the_same_on_average(monkeypatch, name):
    """Every group of the enumerable model: whatever beginnings are said to be worth, the mean is ∇E[R]. A good guess,
    the reward to be expected behind a beginning, takes away variance, a bad one adds some."""
    totals = tabular.returns("real").tolist()
    to_come = tabular.exact_values(tabular.TabularPolicy(), "real")

    def measured(guess, worth):
        def rewards(_, prompt, index):
            completion = tabular.COMPLETIONS[index]
            steps = [0.0, *(worth(prompt, completion[:t]) for t in range(1, len(completion))), totals[prompt][index]]
            return tuple(torch.tensor(steps, dtype=torch.float64).diff().tolist())

        monkeypatch.setattr(tabular, "rewards", rewards)
        return measure(get_algorithm(name), f"real, {guess}")  # groups are kept by this name

    plain = measured("at the end", lambda prompt, begun: 0.0)
    good = measured("by token", lambda prompt, begun: float(to_come[prompt, tabular.PREFIXES.index(begun)]))
    bad = measured(
        "by token, badly", lambda prompt, begun: 9 * math.sin(sum((a + 2) * 4.3**i for i, a in enumerate(begun)))
    )
    for found in (plain, good, bad):
        assert found.relative_error < 1e-12
    assert good.variance < 0.95 * plain.variance < plain.variance < bad.variance


def test_a_column_of_that_name_is_refused(tiny):
    given = {"task": {"name": "custom", "data": [row | {"partial": 1} for row in PROMPTS], "rewards": varied}}
    given |= {"policy": {"model": tiny}, "reward": {"dense": True}, "algorithm": {"name": "reinforce_baseline"}}
    with pytest.raises(InputError, match='the column "partial" has the name'):
        api.build(api.make_config(given))


def test_the_record_says_how_rewards_come():
    config = api.resolve("translation", {"reward": {"dense": True}, "algorithm": {"name": "reinforce_baseline"}})
    found = objective(algorithm_of(config), config)
    assert found["objective"].endswith("gamma=1.0; r_t = R(y_1..y_t) − R(y_1..y_t−1)")
    assert found["objective_details"]["dense_reward"] is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": {"name": "rloo"}}, 'algorithm "rloo" reads only the sum of a completion\'s rewards'),
        ({"rollout": {"num_spare_prompts": 2}}, "with reward.dense groups of equal rewards have a gradient"),
    ],
    ids=["rloo", "spare prompts"],
)
def test_what_it_does_not_go_with(tiny, changes, said):
    given = {"task": {"name": "custom", "data": PROMPTS, "rewards": varied}, "policy": {"model": tiny}}
    given |= {"reward": {"dense": True}, "algorithm": {"name": "reinforce_baseline"}} | changes
    with pytest.raises(InputError, match=re.escape(said)):
        api.build(api.make_config(given))

"""Alerts: each fires on a record that shows its trouble, once, and none on a healthy one."""

from __future__ import annotations

import pytest

from logpi.alerts import RULES, WINDOW, alerts


def record(num=10, **columns):
    """Return metrics rows; a column is a constant, or a pair (first, last) between which it moves evenly."""
    healthy = {"trained_fraction": 0.5, "completions/clipped_ratio": 0.1, "entropy": (2.0, 1.0), "reward": (0.1, 0.6),
               "frac_reward_zero_std": 0.3, "completions/mean_length": 20.0}  # fmt: skip

    def value(column, i):
        return column[0] + (column[1] - column[0]) * i / (num - 1) if isinstance(column, tuple) else column

    return [{name: value(column, i) for name, column in (healthy | columns).items()} for i in range(num)]


def checks(*scores, **watched):
    """Return rows of evaluations.jsonl with these scores; of a watched metric its scores, each ± 0.05."""
    rows = [{"score": score, "metrics": {}, "watched": list(watched)} for score in scores]
    for name, values in watched.items():
        for row, value in zip(rows, values, strict=True):
            row["metrics"][name] = {"score": value, "low": value - 0.05, "high": value + 0.05}
    return rows


TROUBLE = {
    "no signal": ({"trained_fraction": 0.0}, checks(0.1, 0.2, 0.3)),
    "all cut": ({"completions/clipped_ratio": 1.0}, checks(0.1, 0.2, 0.3)),
    "entropy collapse": ({"entropy": (2.0, 0.01), "frac_reward_zero_std": 0.9}, checks(0.1, 0.2, 0.3)),
    "length drift": ({"completions/mean_length": (20.0, 90.0), "reward": 0.3}, checks(0.1, 0.2, 0.3)),
    "reward without score": ({"reward": (0.1, 0.9)}, checks(0.3, 0.3, 0.28)),
    "reward without judge": (
        {"reward": (0.1, 0.9)},
        checks(0.1, 0.5, 0.9, judge=(0.5, 0.5, 0.6), distinct_2=(0.9, 0.8, 0.7)),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_an_alert_fires_on_its_trouble_and_once(name):
    columns, held = TROUBLE[name]
    said = set()
    (text,) = alerts(record(**columns), held, said)
    assert said == {name} and len(text) > 60
    assert alerts(record(**columns), held, said) == []


def test_a_healthy_record_is_quiet_and_so_is_a_short_one():
    assert alerts(record(), checks(0.1, 0.2, 0.3), set()) == []
    assert alerts(record(WINDOW - 1, trained_fraction=0.0), [], set()) == []
    assert alerts(record(trained_fraction=(0.0, 0.5)), [], set()) == []  # it has begun to learn
    assert alerts(record(**{"completions/mean_length": (20.0, 90.0)}), checks(0.1), set()) == []  # longer, and better


def test_a_watched_metric_may_fall_within_its_interval_and_with_the_reward():
    falls, wavers = checks(0.1, 0.9, judge=(0.8, 0.6)), checks(0.1, 0.9, judge=(0.8, 0.71))
    assert "judge" in alerts(record(reward=(0.1, 0.9)), falls, set())[0]
    assert alerts(record(reward=(0.1, 0.9)), wavers, set()) == []
    assert alerts(record(reward=(0.1, 0.15)), falls, set()) == []

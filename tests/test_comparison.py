"""The benchmark of the algorithms runs, goes on where it was stopped, and its page says what it measured."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from logpi.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import algorithms  # noqa: E402
import comparison_page  # noqa: E402


@pytest.fixture
def small(monkeypatch):
    """Two algorithms, two seeds, one rate, runs of two steps or forty environment steps."""
    for name, value in {"NAMES": ("reinforce", "ppo"), "SEEDS": (0, 1), "ENVIRONMENT_STEPS": 40, "CHECK_EVERY": 20,
                        "DIGITS_STEPS": 2}.items():  # fmt: skip
        monkeypatch.setattr(algorithms, name, value)
    tasks = {name: algorithms.Benchmark(task.train, task.rates[:1]) for name, task in algorithms.TASKS.items()}
    monkeypatch.setattr(algorithms, "TASKS", tasks)
    proved = [row for name in ("reinforce", "reinforce_to_go", "reinforce_baseline", "ppo") for row in proof(name)]
    monkeypatch.setattr(algorithms.api, "prove_gradients", lambda: iter(proved))


def proof(name):
    return [{"name": name, "rewards": kind, "class": "exact", "variance": 2.0} for kind in ("binary", "real")]


def test_it_runs_once_and_writes_the_page(small, tmp_path, monkeypatch):
    said = []
    found = json.loads(json.dumps(algorithms.benchmark(tmp_path / "work", said.append)))
    for task in ("cartpole", "digits"):
        for name in ("reinforce", "ppo"):
            runs = found["tasks"][task][name]["runs"]
            assert [run["seed"] for run in runs] == [0, 1] and all(run["mismatch"] == 0.0 for run in runs)
            assert all(0 <= run["informative"] <= 1 and run["seconds"] > 0 for run in runs)
    assert len(said) == 2 * (2 * 2 + 2)
    untrained = {name: algorithms.Benchmark(pytest.fail, task.rates) for name, task in algorithms.TASKS.items()}
    monkeypatch.setattr(algorithms, "TASKS", untrained)
    again = algorithms.benchmark(tmp_path / "work", said.append)  # nothing is trained a second time
    assert json.loads(json.dumps(again))["tasks"] == found["tasks"]
    names = ("circumstances", "cartpole", "digits", "variance", "others")
    places = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in names)
    (tmp_path / "comparison.md").write_text(places)
    comparison_page.write_page(found, tmp_path)
    assert "| `ppo` | 0.001 |" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison-digits.svg").read_text().count("<polygon") == 2


def test_a_stopped_cartpole_run_goes_on_and_keeps_to_its_budget(small, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(algorithms, "ENVIRONMENT_STEPS", 600)
    algorithms.cartpole("rloo", 1e-3, 0, whole)
    recorded = algorithms.Budget.step

    def stop(self, metrics, timing, sample):
        raise KeyboardInterrupt

    monkeypatch.setattr(algorithms.Budget, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        algorithms.cartpole("rloo", 1e-3, 0, cut)
    monkeypatch.setattr(algorithms.Budget, "step", recorded)
    algorithms.cartpole("rloo", 1e-3, 0, cut)
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    lengths = [row["num_tokens"] for row in algorithms.rows(whole, "metrics.jsonl")]
    assert len(lengths) > 1 and sum(lengths[:-1]) < 600 <= sum(lengths)


def test_what_holds_and_its_interval():
    curve = [(0, 0.9), (10, 0.2), (20, 0.8), (30, 0.9), (40, 0.1)]
    assert comparison_page.held(curve, 0.8, 1) == 0 and comparison_page.held(curve, 0.8, 2) == 30
    assert math.isinf(comparison_page.held(curve, 0.8, 3))
    assert comparison_page.at(curve, 15) == pytest.approx(0.5) and comparison_page.at(curve, 99) == 0.1
    mean, low, high = comparison_page.bounds([1, 2, 3, 4, 5])  # t = 2.776, s/√5 = 0.7071
    assert (mean, round(low, 3), round(high, 3)) == (3, 1.037, 4.963)


def test_the_page_is_that_of_its_data(tmp_path):
    docs = ROOT / "docs"
    (tmp_path / "comparison.md").write_text((docs / "comparison.md").read_text())
    found = json.loads((docs / "comparison.json").read_text())
    comparison_page.write_page(found, tmp_path)
    for name in ("comparison.md", "comparison-cartpole.svg", "comparison-digits.svg"):
        assert (tmp_path / name).read_text() == (docs / name).read_text(), name
    for task in found["tasks"].values():
        assert list(task) == list(algorithms.NAMES)
        assert all([run["seed"] for run in row["runs"]] == list(algorithms.SEEDS) for row in task.values())
    named = re.findall(r"^\| `(\w+)` \|", (docs / "comparison.md").read_text(), re.MULTILINE)
    assert set(named) <= {*ALGORITHMS, "dapo"}

"""Learning claims, on several seeds and held-out problems. Long: `make test-slow`."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from logpi import api
from logpi.console import make_observer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SVAMP = Path(__file__).resolve().parents[2] / "shared" / "data" / "svamp" / "SVAMP.json"


def train(recipe, folder, seed, **changes):
    config = api.resolve(recipe, {"seed": seed, "threads": os.cpu_count(), **changes})
    return api.run(config, folder=folder, observer=make_observer(json=True))


@pytest.mark.parametrize("seed", range(5))
def test_cartpole_holds_475_at_three_checks_in_a_row_within_a_minute(tmp_path, seed):
    summary = train("cartpole", tmp_path / "run", seed, threads=1)
    assert summary["target_reached"] and summary["seconds"] < 60


def test_addition_reaches_85_percent_held_out_over_three_seeds(tmp_path):
    summaries = [train("smollm2-addition", tmp_path / str(seed), seed) for seed in range(3)]
    after = [s["evaluation"]["after"]["score"] for s in summaries]
    assert statistics.mean(after) >= 0.85 and min(after) >= 0.80, after
    assert max(s["evaluation"]["before"]["score"] for s in summaries) < 0.5
    assert max(s["seconds"] for s in summaries) <= 12 * 60


@pytest.mark.skipif(not SVAMP.is_file(), reason=f"no {SVAMP.name} beside the checkout")
def test_svamp_improves_beyond_its_interval_on_three_seeds(tmp_path):
    for seed in range(3):
        summary = train("svamp", tmp_path / str(seed), seed, task={"data": str(SVAMP)})
        before, after = summary["evaluation"]["before"], summary["evaluation"]["after"]
        assert after["low"] > before["high"], (seed, before["score"], after["score"])

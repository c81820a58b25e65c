"""What `make bench` measures is turned into ratios and a page as it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import performance_page  # noqa: E402
from side_by_side import LIMIT, compare  # noqa: E402

MACHINE = {name: "1" for name in ("processor", "cores", "logpi", "torch", "transformers", "python")}
MACHINE["dtype"] = "float32"


class Played:
    """A side that gives these answers, the first of which warms up."""

    def __init__(self, name, *seconds, tokens=12, **parts):
        self.name, self.seconds, self.tokens, self.parts = name, iter(seconds), tokens, parts

    def do(self, work):
        return {"seconds": next(self.seconds), "tokens": self.tokens, "parts": self.parts, "peak_gb": 1.5}


def test_a_ratio_is_the_median_of_neighbours():
    ours, theirs = Played("logpi", 9, 2, 3, 1, 4, 1, sample=1.0), Played("other", 9, 4, 3, 5, 4, 3, tokens=24)
    found = compare([ours, theirs], {}, 5)
    assert found["logpi"]["ratio"] == 1 and found["logpi"]["rounds"] == 5 and found["logpi"]["parts"] == {"sample": 1.0}
    assert found["other"]["ratio"] == pytest.approx(1.0)  # of 1, 0.5, 2.5, 0.5, 1.5
    assert found["logpi"]["seconds"] == [2, 1, 4] and found["other"]["tokens_per_second"] == [6.0, 4.8, 8.0]


@pytest.mark.parametrize(("longest", "rounds"), [(29, 5), (31, 3)])
def test_what_takes_long_is_done_three_times(longest, rounds):
    found = compare([Played("logpi", *[1] * 6), Played("slow", *[longest] * 6)], {}, 5)
    assert found["slow"]["rounds"] == found["logpi"]["rounds"] == rounds


def step():
    sides = [Played("logpi", *[8] * 6, tokens=100, sample=5.0, gradient=2.5, update=0.5)]
    sides += [Played(LIMIT, *[3] * 6, tokens=50, sample=2.0, gradient=1.0), Played("trl", *[16] * 6, tokens=100)]
    return {"machine": MACHINE, "sides": compare(sides, {}, 5)}


def test_a_stage_is_set_against_the_products_of_as_many_tokens():
    page = performance_page.written({"step": step()})
    assert "| sampling | 5.00 | 62 % | 4.00 | 80 % |" in page  # 2 s for 50 tokens are 4 s for 100
    assert "| update | 0.50 | 6 % |  |  |" in page
    assert "| trl | 16.0 s (16.0-16.0) | 100 | 6.2 (6.2-6.2) | 2.00 | 1.5 GB |" in page
    assert "## Memory" not in page and "# Performance in float32" in page


def test_sampling_says_its_share_of_the_limit():
    sides = [Played("logpi", *[4] * 6), Played("transformers", *[6] * 6), Played(LIMIT, *[3] * 6)]
    row = {"batch": 16, "generations": 8, "sides": compare(sides, {"new_tokens": 64}, 5)}
    page = performance_page.written({"generation": {"machine": MACHINE, "rows": [row]}})
    assert "| 16 = 2 × 8 | 3.0 (3.0-3.0) | 2.0 (2.0-2.0) | 1.50 | 75 % |" in page


def test_a_seed_that_never_held_is_the_slowest():
    rows = {"logpi": [{"seconds": 3.0}, {"seconds": 1.0}, {"seconds": None}], "ppo": [{"seconds": None}] * 3}
    page = performance_page.written({"cartpole": {"machine": MACHINE, "rows": rows}})
    assert "| logpi | 2 of 3 | 3.0 s | 1.0–3.0 |" in page and "| ppo | 0 of 3 | – | – |" in page


def test_a_folder_without_figures_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match=r"generation\.json.*make bench"):
        performance_page.main(tmp_path, tmp_path / "page.md")
    (tmp_path / "step.json").write_text(json.dumps(step()))
    performance_page.main(tmp_path, tmp_path / "page.md")
    assert "A training step" in (tmp_path / "page.md").read_text()

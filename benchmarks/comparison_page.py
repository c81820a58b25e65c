"""What `benchmarks/algorithms.py` found, as tables in docs/comparison.md and as one SVG figure a task.

The page's sentences are written by hand; what stands between `<!-- NAME -->` and `<!-- end -->` is written here.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds
TITLES = {"reinforce": "REINFORCE", "rloo": "RLOO", "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO",
          "ppo": "PPO", "gspo": "GSPO", "cispo": "CISPO"}  # fmt: skip

# Of each task: greatest score, scores to be reached (each at so many checks in a row), figure's axes.
SHAPES: dict[str, dict[str, Any]] = {
    "cartpole": {"most": 500.0, "targets": (195.0, 475.0), "checks": 3, "end": 50_000, "digits": 0,
                 "x": "environment steps", "ticks": [(0, "0"), (25_000, "25 k"), (50_000, "50 k")],
                 "y": "return", "y_ticks": (0, 250, 500)},
    "digits": {"most": 1.0, "targets": (0.5, 0.8), "checks": 2, "end": 80, "digits": 2,
               "x": "steps", "ticks": [(0, "0"), (40, "40"), (80, "80")],
               "y": "held-out accuracy", "y_ticks": (0, 0.5, 1)},
}  # fmt: skip


def bounds(values: Sequence[float], most: float = math.inf) -> tuple[float, float, float]:
    """Return mean, low and high of the mean's 95 % interval (Student's t over seeds), within [0, most]."""
    mean = statistics.mean(values)
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, max(0.0, mean - half), min(most, mean + half)


def held(curve: Sequence[Sequence[float]], target: float, checks: int) -> float:
    """Return where the last of so many checks in a row at or above the target stands; infinity where none does."""
    in_a_row = 0
    for place, score in curve:
        in_a_row = in_a_row + 1 if score >= target else 0
        if in_a_row == checks:
            return place
    return math.inf


def at(curve: Sequence[Sequence[float]], place: float) -> float:
    """Return a curve's height by linear interpolation; the last check holds on where a run ended before."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if place <= x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return curve[-1][1]


# --- tables ----------------------------------------------------------------------------------------------------


def table(task: str, found: Mapping[str, Any]) -> str:
    """Return a task's table."""
    shape = SHAPES[task]
    digits, low, high = shape["digits"], *shape["targets"]
    lines = [
        f"| algorithm | rate | score at the end | mean of all checks | {shape['x']} to {low:g} | to {high:g} "
        "| seconds | processor seconds | informative groups | actions clipped |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["tasks"][task].items():
        runs = row["runs"]
        cells = [f"`{name}`", f"{row['rate']:g}"]
        for key in ("final", "area"):
            mean, below, above = bounds([run[key] for run in runs], shape["most"])
            cells.append(f"{mean:.{digits}f} [{below:.{digits}f}, {above:.{digits}f}]")
        cells += [_held(runs, target, shape["checks"]) for target in (low, high)]
        seconds = [run["seconds"] for run in runs]
        cells.append(f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})")
        own = [run["processor_seconds"] for run in runs if run["processor_seconds"] is not None]
        cells.append(f"{statistics.median(own):.1f}" if own else "–")
        cells += [
            f"{statistics.mean(run[key] for run in runs):.0%}".replace("%", " %") for key in ("informative", "clipped")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _held(runs: Sequence[Mapping[str, Any]], target: float, checks: int) -> str:
    """Return the median place at which a target held, a run that never got there counting as infinite."""
    places = [held(run["curve"], target, checks) for run in runs]
    median, there = statistics.median(places), sum(map(math.isfinite, places))
    shown = f"{median:,.0f}".replace(",", " ") if math.isfinite(median) else "–"
    return f"{shown} ({there} of {len(places)})"


def variances(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what `logpi prove` says of these algorithms: class, and variance with each kind of rewards."""
    lines = ["| algorithm | class | variance, 0/1 rewards | variance, real rewards |", "|---|---|---|---|"]
    for name in names:
        rows = [row for row in found["proved"] if row["name"] == name]
        kinds = [
            next(row["variance"] for row in rows if row["rewards"].startswith(kind)) for kind in ("binary", "real")
        ]
        wrong = " (wrong V)" if "V" in rows[0]["rewards"] else ""
        lines.append(f"| `{name}` | {rows[0]['class']} | {kinds[0]:.2f}{wrong} | {kinds[1]:.2f}{wrong} |")
    return "\n".join(lines)


def others(found: Mapping[str, Any]) -> list[str]:
    """Return the rows that are proven and not benchmarked."""
    ran = {"reinforce_to_go", "reinforce_baseline", *found["tasks"]["digits"]}
    return [
        name for name in dict.fromkeys(row["name"] for row in found["proved"]) if name not in ran or name == "reinforce"
    ]


def circumstances(found: Mapping[str, Any]) -> str:
    """Return date, machine and versions in a sentence."""
    machine = found["machine"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("logpi", "torch", "transformers", "gymnasium", "python")
    )
    text = f"{found['date']}, {machine['processor']}, {machine['system']}, {machine['threads']} thread, {versions}."
    return textwrap.fill(text, 118)


def write_page(found: Mapping[str, Any], folder: Path) -> None:
    """Write the figures, and the tables into comparison.md."""
    page = folder / "comparison.md"
    text = page.read_text(encoding="utf-8")
    ran = ["reinforce_to_go", "reinforce_baseline", *(name for name in found["tasks"]["digits"] if name != "reinforce")]
    parts = {task: table(task, found) for task in SHAPES}
    parts |= {"circumstances": circumstances(found), "variance": variances(found, ran)}
    parts |= {"others": variances(found, others(found))}
    for name, part in parts.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, p=part: m[1] + p + "\n" + m[2], text, flags=re.S
        )
        assert count == 1, f"{page} has no place for {name}"
    page.write_text(text, encoding="utf-8")
    for task, shape in SHAPES.items():
        curves = {name: [run["curve"] for run in row["runs"]] for name, row in found["tasks"][task].items()}
        (folder / f"comparison-{task}.svg").write_text(figure(curves, shape), encoding="utf-8")


# --- figures ---------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, COLUMNS = 215, 150, 4  # of a panel, in pixels
LEFT, TOP, GAP_X, GAP_Y = 62, 34, 22, 46


def figure(curves: Mapping[str, Sequence[Sequence[Sequence[float]]]], shape: Mapping[str, Any]) -> str:
    """Return an SVG with a panel an algorithm: its mean over seeds with the 95 % band, the others' means in grey."""
    places = [shape["end"] * i / 40 for i in range(41)]
    bands = {n: [bounds([at(c, x) for c in runs], shape["most"]) for x in places] for n, runs in curves.items()}
    num_rows = -(-len(curves) // COLUMNS)
    width, height = LEFT + COLUMNS * (WIDTH + GAP_X), TOP + num_rows * (HEIGHT + GAP_Y) + 4
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, name in enumerate(curves):
        x0 = LEFT + number % COLUMNS * (WIDTH + GAP_X)
        y0 = TOP + number // COLUMNS * (HEIGHT + GAP_Y)
        out += _panel(
            name, bands, places, shape, x0, y0, first=number % COLUMNS == 0, last=number >= len(curves) - COLUMNS
        )
    return "\n".join([*out, "</svg>", ""])


def _panel(name, bands, places, shape, x0: float, y0: float, *, first: bool, last: bool) -> list[str]:
    def x(value: float) -> float:
        return round(x0 + WIDTH * value / shape["end"], 1)

    def y(value: float) -> float:
        return round(y0 + HEIGHT * (1 - value / shape["most"]), 1)

    def line(heights: Sequence[float], style: str) -> str:
        points = " ".join(f"{x(a)},{y(b)}" for a, b in zip(places, heights))
        return f'<polyline points="{points}" fill="none" {style}/>'

    out = [f'<text x="{x0}" y="{y0 - 9}" font-size="13" font-weight="bold">{TITLES.get(name, name)}</text>']
    for tick in shape["y_ticks"]:
        out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(tick)}" y2="{y(tick)}" stroke="#e3e3e3"/>')
        if first:
            out.append(f'<text x="{x0 - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for place, label in shape["ticks"]:
        anchor = "start" if place == 0 else "end" if place == shape["end"] else "middle"
        out.append(f'<text x="{x(place)}" y="{y0 + HEIGHT + 15}" text-anchor="{anchor}">{label}</text>')
    if last:
        out.append(f'<text x="{x0 + WIDTH / 2}" y="{y0 + HEIGHT + 31}" text-anchor="middle">{shape["x"]}</text>')
    if first:
        middle = y0 + HEIGHT / 2
        out.append(
            f'<text x="{x0 - 44}" y="{middle}" text-anchor="middle" transform="rotate(-90 {x0 - 44} {middle})">'
            f"{shape['y']}</text>"
        )
    for other, band in bands.items():
        if other != name:
            out.append(line([b[0] for b in band], 'stroke="#c4c4c4" stroke-width="1"'))
    edge = [f"{x(a)},{y(b[1])}" for a, b in zip(places, bands[name])]
    edge += [f"{x(a)},{y(b[2])}" for a, b in reversed(list(zip(places, bands[name])))]
    out.append(f'<polygon points="{" ".join(edge)}" fill="#1f5fbf" fill-opacity="0.18" stroke="none"/>')
    return [*out, line([b[0] for b in bands[name]], 'stroke="#1f5fbf" stroke-width="2.2"')]

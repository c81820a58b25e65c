"""What `make bench` found, as a page: `python benchmarks/performance_page.py FOLDER PAGE`.

FOLDER holds what the benchmarks wrote by `--output`, each file named like its section below; what is not there is left
out. Every figure of the page comes from these files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import LIMIT, shown

Found = Mapping[str, Any]
STAGES = {"sample": "sampling", "gradient": "gradient", "update": "update", "reward": "rewards", "advantage": "credit"}


def main(folder: Path, page: Path) -> None:
    found = {name: json.loads(path.read_text()) for name in SECTIONS if (path := folder / f"{name}.json").exists()}
    if not found:
        raise SystemExit(f"{folder}: none of {', '.join(f'{name}.json' for name in SECTIONS)}; run make bench first")
    page.write_text(written(found))
    print(f"written: {page}")


def written(found: Mapping[str, Found]) -> str:
    """Return the page of these files."""
    machine = next(iter(found.values()))["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("logpi", "torch", "transformers", "python"))
    head = [
        f"# Performance in {machine['dtype']}",
        f"{machine['cores']} cores of an {machine['processor']}, no GPU; {versions}. Written by "
        "`benchmarks/performance_page.py` from what `make bench` measured: every side a process of its own, in turns, "
        "medians with min–max. A ratio is the median over rounds of logpi's tokens a second through the other's, above "
        "1 where logpi is faster. *Products alone*: the matrix products of the same work and nothing else, the limit.",
    ]
    return "\n\n".join([*head, *(SECTIONS[name](rows) for name, rows in found.items())]) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def sampling(found: Found) -> str:
    """Tokens a second by number of completions, and each side's ratio."""
    sides = [name for name in found["rows"][0]["sides"] if name not in ("logpi", LIMIT)]
    heads = [
        "completions = prompts × each",
        "logpi, tokens/s",
        *sides,
        *(f"logpi : {name}" for name in sides),
        "of the limit",
    ]
    rows = []
    for row in found["rows"]:
        of = row["sides"]
        rows.append([
            f"{row['batch']} = {row['batch'] // row['generations']} × {row['generations']}",
            *(shown(of[name]["tokens_per_second"]) for name in ("logpi", *sides)),
            *(f"{of[name]['ratio']:.2f}" for name in sides),
            percent(of[LIMIT]["ratio"]),
        ])  # fmt: skip
    rounds = [row["sides"]["logpi"]["rounds"] for row in found["rows"]]
    return (
        "## Sampling\n\nSmolLM2-135M, prompts of about 60 tokens, 64 new tokens each, temperature 1; prompts included; "
        f"{min(rounds)} to {max(rounds)} rounds.\n\n{table(heads, rows)}"
    )


def training(title: str) -> Callable[[Found], str]:
    def section(found: Found) -> str:
        """Seconds of a step by side, then where logpi's go and how near each stage is to its products."""
        sides = found["sides"]
        rows = [
            [
                name,
                shown(side["seconds"], " s"),
                f"{side['tokens']:.0f}",
                shown(side["tokens_per_second"]),
                "" if name == "logpi" else f"{side['ratio']:.2f}",
                f"{side['peak_gb']:.1f} GB" if "peak_gb" in side else "",
            ]
            for name, side in sides.items()
        ]
        ours, limit = sides["logpi"], sides[LIMIT]
        whole = sum(ours["parts"].values())
        split = []
        for stage, seconds in ours["parts"].items():
            row = [STAGES[stage], f"{seconds:.2f}", percent(seconds / whole), "", ""]
            if stage in limit["parts"]:
                least = limit["parts"][stage] / limit["tokens"] * ours["tokens"]
                row[3:] = [f"{least:.2f}", percent(least / seconds)]
            split.append(row)
        return "\n\n".join([
            f"## {title}",
            f"8 prompts × 8 completions of at most 64 tokens; {sides['logpi']['rounds']} rounds.",
            table(["", "a step", "tokens", "tokens/s", "logpi : this", "peak"], rows),
            "Where logpi's step goes, and the seconds that the same number of tokens needs in products alone:",
            table(["stage", "seconds", "share", "products alone, s", "of the limit"], split),
        ])  # fmt: skip

    return section


def memory(found: Found) -> str:
    """Peak, estimate and aim by case."""
    rows = [
        [
            f"{case['parameters'] / 1e6:.0f} M parameters, "
            + (f"LoRA of rank {case['lora']}" if case["lora"] else "full"),
            case["dtype"],
            f"{case['peak_gb']:.2f}",
            f"{case['estimate_gb']:.2f} (×{case['estimate_gb'] / case['peak_gb']:.2f})",
        ]
        for case in found["cases"]
    ]
    return (
        "## Memory\n\nThe largest resident set of a process that takes two such steps, and the estimate before a run; "
        "GB of 10⁹ bytes.\n\n" + table(["", "dtype", "peak", "estimate"], rows)
    )


def growth(found: Found) -> str:
    """Seconds by size."""
    rows = [[name, shown(size["seconds"], " s"), f"×{size['ratio']:.2f}"] for name, size in found["sizes"].items()]
    return f"## How a step grows\n\n{found['rounds']} rounds in turns.\n\n{table(['', 'a step', ''], rows)}"


def cartpole(found: Found) -> str:
    """Seconds until CartPole holds, by side."""
    rows = []
    for name, runs in found["rows"].items():
        held = sorted(run["seconds"] for run in runs if run["seconds"] is not None)
        middle = (len(runs) - 1) // 2  # a run that never held took forever
        median = f"{held[middle]:.1f} s" if len(held) > middle else "–"
        rows.append([name, f"{len(held)} of {len(runs)}", median, f"{held[0]:.1f}–{held[-1]:.1f}" if held else "–"])
    return (
        "## CartPole\n\nSeconds from the process's start, evaluations left out, until the sampled and the "
        "deterministic policy both hold a mean return of 475 at three checks in a row; one thread, seeds in turns.\n\n"
        + table(["", "held", "median", "min–max"], rows)
    )


SECTIONS: dict[str, Callable[[Found], str]] = {
    "generation": sampling,
    "step": training("A training step"),
    "step-200": training("A training step with prompts of about 200 tokens"),
    "step-tiny": training("A training step of a tiny network (2 layers, 128 wide, 512 tokens)"),
    "memory": memory,
    "growth": growth,
    "cartpole": cartpole,
}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Training steps side by side: `python benchmarks/step.py [--trl PYTHON] [--rounds 5] [--padding 0] [--tiny]`.

SmolLM2-135M, 8 prompts × 8 completions of at most 64 tokens, 2 threads, bf16 where native, full fine-tuning, every
group with a gradient, no KL. logpi's step (dapo), its matrix products alone (the limit) and, where its interpreter is
named, TRL's GRPO with and without gradient checkpointing: the better of the two counts. `--padding 160` makes prompts
of about 200 tokens, `--tiny` takes a new model of 2 layers, 128 wide, 512 tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from side_by_side import HERE, LIMIT, Side, compare, report, shown

from logpi.policies.model_folder import find
from logpi.policies.untrained import write_untrained

sys.path.append(str(HERE / "sides"))
from texts import additions


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2-q4")
    options.add_argument(
        "--trl", help="an interpreter with trl: TRL takes part (make judges makes one: .venv-judges/bin/python)"
    )
    options.add_argument("--rounds", type=int, default=5, help="three where a side takes over 30 s")
    options.add_argument("--padding", type=int, default=0, help="words before each question")
    options.add_argument("--tiny", action="store_true", help="a new model of 2 layers, 128 wide, 512 tokens")
    options.add_argument("--output", type=Path, help="a JSON file for the figures")
    chosen = options.parse_args()
    model = tiny() if chosen.tiny else f"{find(chosen.model, weights=True).location}"
    words = [str(chosen.padding)]
    sides = [Side("logpi", "step_logpi.py", model, arguments=words), Side(LIMIT, "limit.py", model, arguments=words)]
    if chosen.trl:
        for checkpointing, name in (("1", "trl"), ("0", "trl, no checkpointing")):
            more = {"CHECKPOINTING": checkpointing}
            sides.append(Side(name, "step_trl.py", model, chosen.trl, arguments=words, **more))
    else:
        print("TRL is left out: name an interpreter that has it with --trl")
    found = compare(sides, {}, chosen.rounds)
    for name, side in found.items():
        told = (
            f"{shown(side['seconds'], ' s')} a step, {shown(side['tokens_per_second'])} tokens/s, ×{side['ratio']:.2f}"
        )
        peak = [f"peak {side['peak_gb']:.1f} GB"] if "peak_gb" in side else []
        parts = [f"{part} {seconds:.2f} s" for part, seconds in side["parts"].items()]
        print(f"{name:<24}{', '.join([told, *peak, *parts])}", flush=True)
    for side in sides:
        side.close()
    report({"padding": chosen.padding, "sides": found}, chosen.output)


def tiny() -> str:
    """Write a new model with a tokenizer learnt from the questions; return its folder."""
    folder = Path(tempfile.mkdtemp(prefix="logpi-bench-"))
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
    questions = [chat[-1]["content"] for chat, _ in additions(256, 0)]
    write_untrained(folder, questions, vocab_size=512, context=1024, shape=shape, like=None, seed=0)
    return str(folder)


if __name__ == "__main__":
    main()

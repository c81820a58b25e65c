"""Sampling by transformers' generate, prompts repeated for their group and padded on the left."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from precision import native
from texts import prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import serve

torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=native()).eval()


def work(asked: dict[str, Any]) -> dict[str, Any]:
    ids = [p for p in prompts(tokenizer, asked["prompts"]) for _ in range(asked["generations"])]
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    new = asked["new_tokens"]
    start = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": (found.shape[1] - inputs["input_ids"].shape[1]) * len(ids)}


serve(work)

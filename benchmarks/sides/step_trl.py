"""Training steps of TRL's GRPOTrainer on the same prompts, reward and numbers; waits for its turn before each step."""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from precision import native
from rewards import checksum
from texts import additions

sys.path.append(str(Path(__file__).parents[1]))
from side_by_side import ANSWER


def main() -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(2)
    padding = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    rows = [{"prompt": chat, "answer": answer} for chat, answer in additions(256, padding)]
    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="logpi-bench-"),
        use_cpu=True,
        bf16=native() == torch.bfloat16,
        gradient_checkpointing=os.environ.get("CHECKPOINTING", "1") == "1",
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=64,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        max_steps=1000,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )

    class InTurns(TrainerCallback):
        def __init__(self) -> None:
            self.start, self.tokens = 0.0, 0.0

        def on_step_begin(self, args, state, control, **rest):
            if not sys.stdin.readline():
                os._exit(0)
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **rest):
            seconds = time.perf_counter() - self.start
            lengths = trainer._metrics["train"]["completions/mean_length"]
            answer = {"seconds": seconds, "tokens": 64 * lengths[-1]}
            answer["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(ANSWER + json.dumps(answer), flush=True)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32),
        reward_funcs=checksum,
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left"),
        callbacks=[InTurns()],
    )
    trainer.train()


if __name__ == "__main__":
    main()

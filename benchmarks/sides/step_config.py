"""The step that is timed: 8 prompts × 8 completions of at most 64 tokens, whose rewards all differ."""

from __future__ import annotations

from rewards import checksum
from texts import additions

from logpi.config import Config, make_config


def step_config(model: str, words: int, dtype: str = "auto", lora: int | None = None) -> Config:
    """Return it for a model, with so many words before each question, full or with an adapter of rank `lora`."""
    rows = [{"prompt": chat, "answer": answer} for chat, answer in additions(256, words)]
    return make_config(
        {
            "recipe": "custom",
            "max_steps": 1000,
            "task": {"name": "custom", "data": rows, "rewards": checksum},
            "policy": {"model": model, "dtype": dtype, "lora": lora and {"r": lora}},
            "algorithm": {"name": "dapo"},
            "rollout": {"num_prompts": 8, "num_generations": 8, "max_completion_length": 64},
            "learner": {"learning_rate": 1e-6},
        },
        "benchmark",
    )

"""Prompts of about 60 tokens that differ, and additions as chat messages."""

from __future__ import annotations

import random
from typing import Any

ASKED = (
    "Describe a harbour town on a winter morning, the boats, the people at work and the smell of the fish market.",
    "Explain how a bicycle stays upright while somebody rides it, in words that a child of ten can understand.",
    "Give advice to somebody who plants a vegetable garden for the first time, month by month, from March on.",
    "Tell how two friends lost their way in a forest at dusk and found the path home before the night fell.",
)


def prompts(tokenizer: Any, num: int) -> list[list[int]]:
    """Return the token ids of `num` chat prompts, no two alike."""
    found = []
    for i in range(num):
        asked = f"{ASKED[i % 4]} Take about {30 + i} words and name one place."
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
        )
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def additions(num: int, padding: int) -> list[tuple[list[dict[str, str]], str]]:
    """Return `num` (chat, answer): a sum of two numbers, after `padding` words about something else."""
    draws = random.Random(0)
    words = " ".join(draws.choice(ASKED[0].split()) for _ in range(padding))
    found = []
    for _ in range(num):
        a, b = draws.randint(0, 20), draws.randint(0, 20)
        found.append(([{"role": "user", "content": f"{words} What is {a}+{b}?".strip()}], str(a + b)))
    return found

"""Train on your own questions with your own reward: python examples/own_reward.py [--lora]"""

import sys
from pathlib import Path

import logpi


def brief_and_right(completions, answer, **columns):
    """Give 1 for a text that holds the answer, minus 0.02 for each word: the right answer in few words."""
    texts = [completion[0]["content"].lower() for completion in completions]
    return [float(gold.lower() in text) - 0.02 * len(text.split()) for text, gold in zip(texts, answer)]


if __name__ == "__main__":
    lora = {"policy": {"lora": {"r": 8}}, "learner": {"learning_rate": 1e-4}}
    logpi.train(
        model="smollm2-q4",
        data=str(Path(__file__).with_name("questions.jsonl")),
        rewards=brief_and_right,
        task={"heldout": 6},
        rollout={"num_prompts": 6, "max_completion_length": 32},
        max_steps=20,
        **(lora if "--lora" in sys.argv else {}),
    )

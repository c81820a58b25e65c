"""Eight algorithms on two small tasks: `python benchmarks/algorithms.py [--work runs/algorithms] [--page-only]`.

CartPole, and a language model of random weights that learns to answer with the larger of two digits. Rates are tried on
a seed of its own, the best one is used for five others. A run has a folder of its own under --work: what was stopped
goes on, what is done is not done again. Writes docs/comparison.md, comparison.json beside it, and a figure a task.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from comparison_page import bounds, write_page
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import logpi
from logpi import api, identity
from logpi.algorithms import ALGORITHMS

NAMES = ("reinforce", "rloo", "grpo", "dr_grpo", "dapo", "ppo", "gspo", "cispo")
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
DOCS = Path(__file__).parent.parent / "docs"


class Silent:
    """An observer that shows nothing."""

    def start(self, info): ...
    def evaluation(self, step, result): ...
    def step(self, metrics, timing, sample): ...
    def note(self, text): ...
    def finish(self, summary): ...


# --- CartPole --------------------------------------------------------------------------------------------------

ENVIRONMENT_STEPS = 50_000
CHECK_EVERY = 5_000
MOST_STEPS = 120  # of the loop: a policy whose episodes last 9 steps would need 350


class BudgetSpent(Exception):
    """The check after the last environment step of the budget is on record."""


class Budget(Silent):
    """Ends a run at the first check after so many environment steps; `spent` is what an earlier start has used."""

    def __init__(self, spent: int):
        self.spent = spent

    def step(self, metrics, timing, sample):
        self.spent += metrics["num_tokens"]

    def evaluation(self, step, result):
        if self.spent >= ENVIRONMENT_STEPS:
            raise BudgetSpent


def cartpole(name: str, rate: float, seed: int, folder: Path) -> None:
    """Train on CartPole-v1, a step's 16 episodes being one group."""
    row = "reinforce_baseline" if name == "reinforce" else name
    discounted = {"gamma": 0.98} if "gamma" in ALGORITHMS[row].option_names() else {}
    critic = {"gae_lambda": 0.95, "standardise_advantages": True} if row == "ppo" else {}
    saved = sorted((folder / "checkpoints").glob("step-*")) if folder.is_dir() else []
    done = int(saved[-1].name[5:]) if saved else 0
    spent = sum(row["num_tokens"] for row in rows(folder, "metrics.jsonl") if row["step"] <= done)
    with contextlib.suppress(BudgetSpent):
        logpi.train(
            environment="CartPole-v1",
            policy={"kind": "mlp", "hidden_sizes": [64, 64]},
            rollout={"num_prompts": 1, "num_generations": 16},
            algorithm={"name": row, "updates_per_rollout": 4, "num_minibatches": 4, **discounted, **critic},
            learner={"learning_rate": rate, "max_grad_norm": 0.5},
            evaluation={
                "every_steps": None,
                "every_actions": CHECK_EVERY,
                "num_episodes": 50,
                "full_report": False,
            },
            max_steps=MOST_STEPS,
            seed=seed,
            threads=1,
            run=folder,
            observer=Budget(spent),
        )


# --- the larger of two digits ----------------------------------------------------------------------------------

DIGITS_STEPS = 80
DIGITS = [{"prompt": f"{a}{b}=", "answer": str(max(a, b))} for a, b in itertools.product(range(10), repeat=2)]


def write_model(folder: Path, seed: int) -> Path:
    """Write a Llama of 2 layers and width 32 over single characters, with random weights of this seed."""
    if not (folder / "model.safetensors").is_file():
        characters = ["<end>", "<pad>", "=", *"0123456789"]
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<pad>"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        ends = dict(bos_token_id=None, eos_token_id=0, pad_token_id=1, initializer_range=0.15)
        torch.manual_seed(seed)
        network = LlamaForCausalLM(LlamaConfig(vocab_size=len(characters), max_position_embeddings=64, **shape, **ends))
        tokenizer.save_pretrained(folder)
        network.save_pretrained(folder)
    return folder


def likeness(completions, answer, **columns):
    """Return the share of places at which text and answer agree, of the longer one's length."""
    return [sum(a == b for a, b in zip(text, gold)) / max(len(text), 1) for text, gold in zip(completions, answer)]


def exact(completions, answer, **columns):
    """Return 1 for the answer and nothing else."""
    return [float(text == gold) for text, gold in zip(completions, answer)]


def digits(name: str, rate: float, seed: int, folder: Path) -> None:
    """Train a model of random weights to answer with the larger of two digits, and to end then."""
    row = "reinforce_to_go" if name == "reinforce" else name
    logpi.train(
        model=str(write_model(folder.parent.parent / f"model-{seed}", seed)),
        policy={"dtype": "float32"},
        data=DIGITS,
        task={"name": "custom", "rewards": [likeness], "metrics": [exact], "heldout": 30},
        rollout={"num_prompts": 8, "num_generations": 8, "max_completion_length": 5},
        algorithm={"name": row, "updates_per_rollout": 2, "standardise_advantages": row == "ppo"},
        learner={"learning_rate": rate, "micro_batch_tokens": 8192},
        evaluation={"every_steps": 10, "full_report": False},
        max_steps=DIGITS_STEPS,
        seed=seed,
        threads=1,
        run=folder,
        observer=Silent(),
    )


# --- a run, and what came of it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """A task: how to train on it, and the learning rates to try."""

    train: Callable[[str, float, int, Path], None]
    rates: tuple[float, ...]


TASKS = {
    "cartpole": Benchmark(cartpole, (1e-3, 2.5e-3, 6e-3)),
    "digits": Benchmark(digits, (1e-3, 2e-3, 4e-3)),
}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the whole rows of a run's file, none where there is no such file."""
    file = folder / name
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def result(task: str, name: str, rate: float, seed: int, work: Path) -> dict[str, Any]:
    """Return what a run came to: from its file, or from training it now."""
    place = work / task / name
    file = place / f"{rate:g}-{seed}.json"
    if not file.is_file():
        folder = file.with_suffix("")
        anew, start = not folder.exists(), time.process_time()
        TASKS[task].train(name, rate, seed, folder)
        found = {"rate": rate, "seed": seed, **measured(task, folder)}
        found["processor_seconds"] = time.process_time() - start if anew else None  # evaluations included
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def measured(task: str, folder: Path) -> dict[str, Any]:
    """Return a run's curve, seconds, and share of informative groups."""
    steps, checks = rows(folder, "metrics.jsonl"), rows(folder, "evaluations.jsonl")
    actions = dict(zip((m["step"] for m in steps), itertools.accumulate(m["num_tokens"] for m in steps)))
    curve = [(actions.get(c["step"], 0) if task == "cartpole" else c["step"], c["score"]) for c in checks]
    timing = rows(folder, "timing.jsonl")
    return {
        "curve": curve,
        "final": curve[-1][1],
        "area": statistics.mean(score for _, score in curve[1:]),
        "seconds": sum(t.get("seconds", 0.0) for t in timing),
        "evaluation_seconds": sum(t.get("evaluation_seconds", 0.0) for t in timing),
        "actions": actions[steps[-1]["step"]],
        "steps": len(steps),
        "informative": 1 - statistics.mean(m["frac_reward_zero_std"] for m in steps),
        "clipped": statistics.mean(m["clip_ratio/region_mean"] for m in steps),
        "mismatch": max(m["mismatch/max"] for m in steps),
        "mean_length": [steps[0]["completions/mean_length"], steps[-1]["completions/mean_length"]],
    }


def compared(task: str, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each algorithm's name with its trials of rates and its runs at the best of them."""
    benchmark = TASKS[task]
    for name in NAMES:
        trials = [result(task, name, rate, TUNING_SEED, work) for rate in benchmark.rates]
        rate = max(trials, key=lambda trial: trial["area"])["rate"]
        yield name, {"rate": rate, "trials": {f"{t['rate']:g}": t["area"] for t in trials}}


def benchmark(work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what has not been run yet; return everything as plain data."""
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": identity.of_machine("cpu", "float32", 1),
    }
    found["tasks"] = {}
    for task in TASKS:
        table = found["tasks"][task] = dict(compared(task, work))
        for seed, name in itertools.product(SEEDS, NAMES):  # seeds outermost: a busy hour falls on all alike
            run = result(task, name, table[name]["rate"], seed, work)
            table[name].setdefault("runs", []).append(run)
            say(f"{task} {name} seed {seed}: {run['final']:.2f} after {run['steps']} steps, {run['seconds']:.1f} s")
        for name, row in table.items():
            mean, low, high = bounds([run["final"] for run in row["runs"]])
            say(f"{task:<9}{name:<11}{row['rate']:<8g}{mean:8.2f} [{low:.2f}, {high:.2f}]")
    file = work / "proved.json"
    if not file.is_file():
        file.write_text(json.dumps(list(api.prove_gradients())))
    found["proved"] = json.loads(file.read_text())
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, default=Path("runs/algorithms"), help="where the runs are")
    options.add_argument("--page-only", action="store_true", help="write the page from comparison.json again")
    chosen = options.parse_args()
    data = DOCS / "comparison.json"
    if not chosen.page_only:
        torch.set_num_threads(1)
        found = benchmark(chosen.work, lambda line: print(line, flush=True))
        data.write_text(json.dumps(found, indent=1) + "\n")
    write_page(json.loads(data.read_text()), DOCS)


if __name__ == "__main__":
    main()

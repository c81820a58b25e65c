"""Kill small runs, let the same command go on, and compare what they leave with a run that nobody killed.

What `logpi prove --resume` does, on the machine at hand: CartPole, and a language model of two layers made up for it.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logpi.errors import InputError, LogpiError
from logpi.platforms import require_posix

PATIENCE_SECONDS = 120.0
SMALL = {
    "cartpole": (
        "cartpole --max-steps 6 --rollout.num-generations 4 --evaluation.num-episodes 4 --evaluation.every-actions 128 "
        "--checkpoint.every-steps 2"
    ),
    "language model": (
        "smollm2-addition --max-steps 6 --model {model} --threads 1 --policy.dtype float32 --task.max-operand 4 "
        "--task.num-heldout 5 --rollout.num-prompts 4 --rollout.num-generations 4 --rollout.max-completion-length 6 "
        "--evaluation.every-steps 3 --evaluation.full-report false --checkpoint.every-steps 2 "
        "--task.reward last_integer"
    ),
}


def prove(kills: int = 2, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a row for each kill: what ran, after which step it died, how many files were compared, which differ."""
    require_posix("killing and comparing runs")
    if not 1 <= kills <= 100:
        raise InputError(f"--kills {kills}: give a number from 1 to 100")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="logpi-prove-") as name:
        folder = Path(name)
        write_tiny_model(folder / "model")
        for kind, command in SMALL.items():
            words = command.format(model=folder / "model").split()
            whole = folder / f"{kind} whole"
            _wait(_start(words, whole))
            expected = digests(whole)
            for number in range(kills):
                run, step = folder / f"{kind} killed {number}", draw.randrange(1, 6)
                yield {"run": kind, **_killed(words, run, step, draw.uniform(0, 0.2), expected)}


def _killed(words: Sequence[str], run: Path, step: int, pause: float, expected: dict[str, str]) -> dict[str, Any]:
    process = _start(words, run)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and _num_rows(run) < step and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    was_killed = process.wait() == -signal.SIGKILL
    _wait(_start(words, run))
    found = digests(run)
    different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return {"killed_after_step": step if was_killed else None, "files": len(expected), "different": different}


def _start(words: Sequence[str], run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "logpi", "train", *words, "--run", str(run)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (run.parent / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, stdin=subprocess.DEVNULL)


def _wait(process: subprocess.Popen[bytes]) -> None:
    status = process.wait(PATIENCE_SECONDS)
    if status:
        raise LogpiError(f"a small run that nobody killed ended with exit code {status}: {' '.join(process.args)}")  # type: ignore[arg-type]


def _num_rows(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of everything that must come out the same: weights, optimiser, metrics, samples, scores."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = [run / "metrics.jsonl", run / "samples.jsonl", run / "evaluations.jsonl", newest / "state.safetensors"]
    files += [path for path in (run / "final").rglob("*") if path.is_file()]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def write_tiny_model(folder: Path) -> None:
    """Write a Llama of two layers with random weights, and a tokenizer of single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["<eos>", "<pad>", *"0123456789+=? ", *"Whatis"]
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}="
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(characters), eos_token_id=0, bos_token_id=None, **shape)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""What the agreement to the last bit costs: `python benchmarks/parity.py [--steps 5] [--long [--words 160]]`.

Steps of SmolLM2-135M in turns, from the same weights, on the same prompts with the same random numbers: as logpi does
them, and with what torch offers that is not bound to the last bit: its fused attention in sampling or in learning, its
log_softmax, batches of as many rows as there are. Each alone and all together; the fastest of them is what exactness is
measured against. Medians with min-max, and the mismatch that each leaves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reliability import Silent
from side_by_side import HERE, report, shown, spread
from torch import Tensor
from torch.nn import functional as F

from logpi import api
from logpi.device import product_dtype
from logpi.learner import Learner
from logpi.policies.packing import Packing, rows_of_heads
from logpi.rollout.sampling import draw
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer, use_threads

sys.path.append(str(HERE / "sides"))
from step_config import step_config

# --- what is not exact -----------------------------------------------------------------------------------------


def attention_of(query: Tensor, key: Tensor, value: Tensor, masked: Tensor) -> Tensor:
    """As logpi's, by torch's fused kernel."""
    found = F.scaled_dot_product_attention(query, key, value, ~masked, scale=1.0, enable_gqa=True)
    return found.transpose(1, 2)


def packed_attention(packing: Packing, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """As logpi's, each block by torch's fused kernel; its gradients are autograd's."""
    dtype = product_dtype(query.dtype)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    found, places = [], []
    for block in packing.blocks:
        parts = query[block.queries], key[block.keys], value[block.keys]
        asking, asked, values = (part.transpose(1, 2) for part in parts)
        own = F.scaled_dot_product_attention(asking, asked, values, ~block.masked, scale=scaling, enable_gqa=True)
        found.append(own.flatten(0, -2))
        places.append(rows_of_heads(block.queries, query.shape[1], query.shape[1]).flatten())
    rows, place = torch.cat(found), torch.cat(places)
    where = place.new_zeros(query.shape[0] * query.shape[1])
    where[place] = torch.arange(len(place))
    return rows[where].view(query.shape)


def choose(logits: Tensor, transform: Any, uniforms: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As logpi's, by log_softmax over all rows at once."""
    log_probs = torch.log_softmax(logits.float() / transform.temperature, -1)
    probabilities = log_probs.exp()
    tokens = logits.argmax(-1) if uniforms is None else draw(probabilities, uniforms)
    entropies = -(probabilities * log_probs).sum(-1)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0], entropies


def action_log_probs(hidden, weight, bias, actions, transform, dtype, reference=None, head=None, with_entropy=False):
    """As logpi's, by log_softmax under autograd."""
    logits = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    every = torch.log_softmax(logits.float() / transform.temperature, -1)
    return every.gather(1, actions[:, None])[:, 0], None, None


def unpadded(tensor: Tensor, *_: int) -> Tensor:
    """Rows as they are."""
    return tensor


SAMPLED = {"logpi.policies.fused.attention_of": attention_of}
LEARNT = {"logpi.policies.packing.Packing.attention": packed_attention}
SOFTMAX_SAMPLED = {"logpi.rollout.engine.choose": choose}
SOFTMAX_LEARNT = {"logpi.policies.causal_lm.token_log_probs": action_log_probs}
ROWS = {
    "logpi.rollout.engine.ROW_MULTIPLE": 1,
    "logpi.policies.causal_lm.pad_rows": unpadded,
    "logpi.policies.token_log_probs.pad_rows": unpadded,
    "logpi.policies.attention.product": torch.matmul,
    "logpi.policies.packing.product": torch.matmul,
}
MODES: dict[str, dict[str, Any]] = {
    "logpi, to the last bit": {},
    "fused attention in sampling": SAMPLED,
    "fused attention in learning": LEARNT,
    "log_softmax in sampling": SOFTMAX_SAMPLED,
    "log_softmax in learning": SOFTMAX_LEARNT,
    "rows not padded": ROWS,
    "all of these": SAMPLED | LEARNT | SOFTMAX_SAMPLED | SOFTMAX_LEARNT | ROWS,
}


@contextmanager
def without_exactness(parts: dict[str, Any]) -> Iterator[None]:
    """Put these in the place of logpi's own."""
    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(mock.patch(name, part))
        yield


# --- the steps -------------------------------------------------------------------------------------------------


def step_of(trainer: Trainer) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Do the first step once more; return its seconds, their split and its metrics. No weight changes: rate 0."""
    trainer.steps_done, trainer.seconds = 0, {}
    trainer.journal.prune(1)
    start = time.perf_counter()
    metrics = trainer.step()[1]
    return time.perf_counter() - start, dict(trainer.seconds), metrics


def measure(trainer: Trainer, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what each mode took, in turns."""
    found: dict[str, list[Any]] = {name: [] for name in MODES}
    for number in range(steps + 1):
        for name, parts in MODES.items():
            with without_exactness(parts):
                seen = step_of(trainer)
            if number:  # the first of each warms up
                found[name].append(seen)
    result = {}
    for name, seen in found.items():
        seconds = [s for s, _, _ in seen]
        pairs = [exact[0] / other[0] for exact, other in zip(found[next(iter(MODES))], seen, strict=True)]
        split = {part: statistics.median(s[1][part] for s in seen) for part in ("sample", "gradient")}
        mismatch = max(m["mismatch/max"] for _, _, m in seen)
        result[name] = {"seconds": spread(seconds), "ratio": statistics.median(pairs), "split": split,
                        "mismatch": mismatch, "tokens": seen[-1][2]["num_tokens"]}  # fmt: skip
        parts_shown = f"sampling {split['sample']:.2f}, gradient {split['gradient']:.2f}"
        say(f"{name:<30}{shown(spread(seconds), ' s'):<20} logpi / this {result[name]['ratio']:.3f}   {parts_shown}   "
            f"mismatch {mismatch:.1e}   {result[name]['tokens']} tokens")  # fmt: skip
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=5, help="timed steps of each")
    options.add_argument("--long", action="store_true", help="8 × 8 completions of up to 64 tokens, not the recipe")
    options.add_argument("--words", type=int, default=0, help="words before each question, with --long")
    options.add_argument("--dtype", default="auto", help="of products: bfloat16, float32; auto: what is native")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--output", type=Path, help="a JSON file for the figures")
    chosen = options.parse_args()
    use_threads(chosen.threads)
    config = (
        step_config("smollm2-q4", chosen.words, chosen.dtype)
        if chosen.long
        else api.resolve("smollm2-addition", {"policy": {"dtype": chosen.dtype}})
    )
    experience, policy, algorithm = api.build(config)
    learner = Learner(policy, algorithm, learning_rate=0.0, micro_batch_tokens=config.learner.micro_batch_tokens)
    with (
        tempfile.TemporaryDirectory(prefix="logpi-bench-") as name,
        RunFolder.open(Path(name) / "run", config.plain()) as record,
    ):
        trainer = Trainer(config, experience, algorithm, learner, record, Silent())
        found = measure(trainer, chosen.steps, lambda line: print(line, flush=True))
    exact, *others = found.values()
    fastest = max(other["ratio"] for other in others)
    print(f"against the fastest of them: {fastest:.3f}; exact mode's mismatch {exact['mismatch']:.1e}")
    report({"long": chosen.long, "words": chosen.words, "dtype": chosen.dtype, "modes": found}, chosen.output)


if __name__ == "__main__":
    main()

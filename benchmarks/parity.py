"""What the agreement to the last bit costs: `python benchmarks/parity.py [--steps 5]`.

Steps of the addition recipe, alternating in one process: with logpi's attention and log-probs, and with the fastest
that torch has for both (scaled_dot_product_attention, log_softmax), which make sampler and learner differ. Both
start from the same weights each time and do the same step; medians with min-max.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from reliability import Silent
from torch.nn import functional as F

from logpi import api
from logpi.device import product_dtype
from logpi.learner import Learner
from logpi.policies import attention, token_log_probs
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer


def fused_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """softmax(QKᵀ·scaling + mask)V by torch's fused kernel."""
    dtype = product_dtype(query.dtype)
    out = F.scaled_dot_product_attention(
        query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2), None


def use(exact: bool, plain=token_log_probs.log_policy) -> None:
    """Switch between the two."""
    from transformers import AttentionInterface

    def fast(hidden, weight, bias, transform, **kept):
        logits = token_log_probs.action_logits(hidden, weight, bias, transform.temperature)
        return torch.log_softmax(logits, -1), None

    AttentionInterface.register(attention.NAME, attention.invariant_attention if exact else fused_attention)
    token_log_probs.log_policy = plain if exact else fast


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=5, help="timed steps on each side")
    chosen = options.parse_args()
    config = api.resolve("smollm2-addition")
    torch.use_deterministic_algorithms(True)
    experience, policy, algorithm = api.build(config)
    learner = Learner(policy, algorithm, learning_rate=1e-9, micro_batch_tokens=config.learner.micro_batch_tokens)
    times: dict[bool, list[float]] = {True: [], False: []}
    mismatch: dict[bool, float] = {True: 0.0, False: 0.0}
    with tempfile.TemporaryDirectory(prefix="logpi-bench-") as name:
        folder = Path(name)
        with RunFolder.open(folder / "run", config.plain()) as record:
            trainer = Trainer(config, experience, algorithm, learner, record, Silent())
            for number in range(2 * (chosen.steps + 1)):
                exact = number % 2 == 0
                use(exact)
                trainer.steps_done = 0  # the same prompts and draws each time; the rate is too small to matter
                trainer.journal.prune(1)
                start = time.perf_counter()
                metrics = trainer.step()[1]
                if number > 1:  # the first of each warms up
                    times[exact].append(time.perf_counter() - start)
                mismatch[exact] = max(mismatch[exact], metrics["mismatch/max"])
    rows = {}
    for exact, name in ((True, "logpi's, to the last bit"), (False, "fused attention, log_softmax")):
        rows[name] = [statistics.median(times[exact]), min(times[exact]), max(times[exact]), mismatch[exact]]
        median, low, high, worst = rows[name]
        print(f"{name:<30}{median:7.2f} s  ({low:.2f}-{high:.2f})  mismatch {worst:.1e}")
    ratio = statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
    print(f"ratio {ratio:.3f} (median of pairs)")
    print(json.dumps({"rows": rows, "ratio": ratio, "torch": torch.__version__}))


if __name__ == "__main__":
    main()

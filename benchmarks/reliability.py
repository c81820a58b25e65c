"""What checkpoints and journal cost: `python benchmarks/reliability.py [--steps 20] [--pairs 3]`.

The addition recipe's steps with and without them, alternating in one process on the same batches; medians with min-max.
A step "without" writes no journal and no rows, and its share of a checkpoint is left out; both do the same arithmetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from logpi import api
from logpi.learner import Learner
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer, use_threads


class Silent:
    """An observer that shows nothing."""

    def start(self, info): ...
    def evaluation(self, step, result): ...
    def step(self, metrics, timing, sample): ...
    def note(self, text): ...
    def finish(self, summary): ...


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=6, help="timed steps on each side")
    chosen = options.parse_args()
    config = api.resolve("smollm2-addition")
    use_threads(None)
    experience, policy, algorithm = api.build(config)
    learner = Learner(policy, algorithm, learning_rate=config.learner.learning_rate,
                      micro_batch_tokens=config.learner.micro_batch_tokens)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="logpi-bench-") as name:
        folder = Path(name)
        with RunFolder.open(folder / "run", config.plain()) as record:
            trainer = Trainer(config, experience, algorithm, learner, record, Silent())
            journal = trainer.journal
            with_it, without, saves, keeping = [], [], [], []
            for number in range(2 * chosen.steps):
                kept = number % 2 == 0
                trainer.journal = (
                    journal if kept else type("None", (), {"read": lambda *_: None, "write": lambda *_: None})()
                )
                start = time.perf_counter()
                trajectories, metrics = trainer.step()
                if kept:
                    trainer.record(trajectories, metrics, 1.0)
                (with_it if kept else without).append(time.perf_counter() - start)
                start = time.perf_counter()  # the same once more, alone: between steps the difference is noise
                journal.write(trainer.steps_done, trajectories)
                trainer.record(trajectories, metrics, 1.0)
                keeping.append(time.perf_counter() - start)
            trainer.journal = journal
            for _ in range(3):
                start = time.perf_counter()
                trainer.save()
                saves.append(time.perf_counter() - start)
                trainer.steps_done += 1
    rows = {}
    timed = {"step with journal and rows": with_it, "step without": without}
    timed |= {"journal and rows alone": keeping, "one checkpoint": saves}
    for name, values in timed.items():
        rows[name] = [statistics.median(values), min(values), max(values)]
        print(f"{name:<28}{rows[name][0]:8.2f} s  ({rows[name][1]:.2f}-{rows[name][2]:.2f})")
    every = config.checkpoint.every_steps
    step = rows["step without"][0]
    share = (rows["one checkpoint"][0] / every + rows["journal and rows alone"][0]) / step
    print(f"checkpoint every {every} steps, journal and rows: {share:.1%} of step time")
    print(f"done again after a crash, at most: the gradients of {every} steps; no sample and no reward")
    print(json.dumps({"rows": rows, "share": share, "torch": torch.__version__}))


if __name__ == "__main__":
    main()

"""Training steps of logpi: sample, score, gradient, update."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from step_config import step_config

sys.path.append(str(Path(__file__).parents[1]))
from reliability import Silent
from side_by_side import serve

from logpi import api
from logpi.learner import Learner
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer, use_threads

use_threads(2)
padding = int(sys.argv[2]) if len(sys.argv) > 2 else 0
config = step_config(sys.argv[1], padding)
experience, policy, algorithm = api.build(config)
learner = Learner(policy, algorithm, learning_rate=1e-6, micro_batch_tokens=config.learner.micro_batch_tokens)
folder = tempfile.TemporaryDirectory(prefix="logpi-bench-")


def work(asked: dict[str, Any]) -> dict[str, Any]:
    trainer.seconds = {}
    start = time.perf_counter()
    found, metrics = trainer.step()
    return {
        "seconds": time.perf_counter() - start,
        "tokens": sum(len(t) for t in found),
        "parts": {name: round(value, 2) for name, value in trainer.seconds.items()},
        "informative": 1 - metrics["frac_reward_zero_std"],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


with RunFolder.open(Path(folder.name) / "run", config.plain()) as record:
    trainer = Trainer(config, experience, algorithm, learner, record, Silent())
    serve(work)
folder.cleanup()

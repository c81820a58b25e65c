"""logpi's side of `seconds_to_score.py`: the recipe's task, the asked numbers, a constant learning rate."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from score import Clock, wanted

sys.path.append(str(Path(__file__).parents[1]))
from reliability import Silent

from logpi import api
from logpi.learner import Learner
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer, use_threads

asked = json.loads(sys.argv[1])
clock = Clock(asked)
use_threads(asked["threads"])
config, task = wanted(asked)
experience, policy, algorithm = api.build(config, task)
learner = Learner(policy, algorithm, learning_rate=asked["rate"], micro_batch_tokens=config.learner.micro_batch_tokens)
done = False
with (
    tempfile.TemporaryDirectory(prefix="logpi-bench-") as folder,
    RunFolder.open(Path(folder) / "run", config.plain()) as record,
):
    trainer = Trainer(config, experience, algorithm, learner, record, Silent())
    clock.begin()
    while not done:
        for _ in range(clock.every):
            found, _ = trainer.step()
            clock.completions += len(found)
            clock.tokens += sum(len(t) for t in found)
        done = clock.check(lambda: experience.evaluate(trainer.steps_done))
clock.answer()

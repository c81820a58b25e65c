"""CartPole and a language model go through one loop: a profiler's word for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models import write

import logpi
from logpi import estimators, losses
from logpi.algorithms import Algorithm
from logpi.api import build, resolve
from logpi.batching import micro_batches, minibatches
from logpi.credit import assign_credit
from logpi.learner import Learner
from logpi.masking import masked_sum
from logpi.metrics import step_metrics
from logpi.run_folder import RunFolder
from logpi.trainer import Trainer
from logpi.trajectory import Batch, make_batch

ROOT = Path(logpi.__file__).parent
SHARED = [
    Trainer.step,
    make_batch,
    Learner.annotate,
    assign_credit,
    Algorithm.options_of,
    minibatches,
    Learner.backward,
    Batch.select,
    micro_batches,
    Learner.loss,
    losses.clipped_ratio,
    masked_sum,
    Learner.update,
    step_metrics,
]
CELLS = {
    "ppo": [estimators.generalised_advantage, losses.per_token, Learner._evaluate_all, losses.squared_error],
    "rloo": [estimators.leave_one_out, losses.per_trajectory],
}
# what acts, where it acts, what it is asked: all that may differ
OWN = (
    *("policies", "device.py", "rollout", "environments", "tasks"),
    *("experience.py", "writing.py", "control.py", "evaluation.py", "randomness.py"),
)


def traced_step(recipe, overrides, folder):
    """Run one step of a recipe; return the code of every function of logpi that ran."""
    config = resolve(recipe, overrides)
    experience, policy, algorithm = build(config)
    trainer = Trainer(
        config, experience, algorithm, Learner(policy, algorithm, learning_rate=1e-3), RunFolder(folder / recipe), None
    )
    (folder / recipe).mkdir()
    before = {n: p.detach().clone() for n, p in policy.trainable_parameters().items()}
    seen = set()

    def profile(frame, event, _):
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(profile)
    try:
        trajectories, metrics = trainer.step()
    finally:
        sys.setprofile(None)
    assert trajectories and metrics["grad_norm"] > 0 and trainer.steps_done == 1
    assert any(not torch.equal(p, before[n]) for n, p in policy.trainable_parameters().items())
    return {code for code in seen if code.co_filename.startswith(str(ROOT)) and code.co_name[0] != "<"}


@pytest.mark.parametrize("algorithm", ["as shipped", *CELLS])
def test_cartpole_and_a_language_model_run_the_same_functions(tmp_path, algorithm):
    same = {"name": algorithm, "updates_per_rollout": 2, "standardise_advantages": True}
    row = {} if algorithm == "as shipped" else same
    # small sums and the kinder reward: an untrained model is right now and then, so that there is a gradient
    task = {"name": "addition", "max_operand": 3, "num_heldout": 4, "reward": "last_integer"}
    language = {
        "task": task,
        "policy": {"model": write(tmp_path, "llama"), "dtype": "float32"},
        "rollout": {"num_prompts": 8, "num_generations": 8, "max_completion_length": 6},
        "algorithm": row,
    }
    control = {"rollout": {"num_generations": 4}, "algorithm": {"updates_per_rollout": 2, **row}}
    if algorithm == "rloo":
        control["algorithm"] |= {"gamma": None, "gae_lambda": None}
    cartpole = traced_step("cartpole", control, tmp_path)
    addition = traced_step("smollm2-addition", language, tmp_path)
    both = cartpole & addition
    for function in [*SHARED, *CELLS.get(algorithm, [])]:
        assert getattr(function, "__wrapped__", function).__code__ in both, function
    if algorithm in CELLS:  # given the same row of the table, nothing else differs
        for code in cartpole ^ addition:
            assert Path(code.co_filename).relative_to(ROOT).parts[0] in OWN, code

"""The loop. The only file that sees every stage of a step."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from logpi import checkpoint
from logpi.algorithms import Algorithm, assign_credit
from logpi.batching import minibatches
from logpi.config import Config
from logpi.evaluation import Evaluation
from logpi.experience import Experience
from logpi.learner import Gradient, Learner
from logpi.metrics import step_metrics
from logpi.run_folder import RunFolder
from logpi.trajectory import Trajectory, make_batch


class Observer(Protocol):
    """Who watches a run; called with plain data."""

    def start(self, info: dict[str, Any]) -> None: ...
    def evaluation(self, step: int, result: dict[str, Any]) -> None: ...
    def step(self, metrics: dict[str, Any], timing: dict[str, Any], sample: dict[str, Any] | None) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self, summary: dict[str, Any]) -> None: ...


class Trainer:
    """Steps from the newest checkpoint to the last step, evaluating and saving on the way."""

    def __init__(
        self,
        config: Config,
        experience: Experience,
        algorithm: Algorithm,
        learner: Learner,
        folder: RunFolder,
        observer: Observer,
    ):
        self.config, self.experience, self.algorithm = config, experience, algorithm
        self.learner, self.folder, self.observer = learner, folder, observer
        self.steps_done, self.num_actions = 0, 0  # of the whole run
        self.train_seconds, self.checks_passed = 0.0, 0
        self.seconds: dict[str, float] = {}

    # --- one step ----------------------------------------------------------------------------------------------

    def step(self) -> tuple[list[Trajectory], dict[str, Any]]:
        """Sample trajectories, reward them, turn rewards into advantages, take the gradient, update the weights."""
        step, options = self.steps_done, self.config.algorithm
        several_updates = options.updates_per_rollout * options.num_minibatches > 1

        with self.timed("sample"):
            trajectories = self.experience.sample(step, self.learner.num_updates)
        with self.timed("reward"):
            trajectories = self.experience.reward(trajectories)
        with self.timed("advantage"):
            batch = self.learner.annotate(make_batch(trajectories), several_updates=several_updates)
            batch = assign_credit(self.algorithm, batch, standardise=options.standardise_advantages)

        gradients: list[Gradient] = []
        norms: list[float] = []
        for minibatch in minibatches(
            batch,
            self.algorithm.reduction,
            updates=options.updates_per_rollout,
            num_minibatches=options.num_minibatches,
            seed=self.config.seed,
            step=step,
        ):
            with self.timed("gradient"):
                gradients.append(self.learner.backward(minibatch))
            with self.timed("update"):
                norms.append(self.learner.update(step))

        self.steps_done += 1
        self.num_actions += int(batch.mask.sum())
        return trajectories, step_metrics(trajectories, batch, gradients, norms, self.experience)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add a stage's wall time to the step's split."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    # --- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to `max_steps`, or until the target score holds; return the summary that is written to the folder."""
        self.resume()
        before = self.evaluations().get(0)
        if before is None:  # not on record yet
            before = self.evaluate(full=self.config.evaluation.full_report)
        reached = False
        while self.steps_done < self.config.max_steps and not reached:
            self.seconds = {}
            start = time.perf_counter()
            actions_before = self.num_actions
            trajectories, metrics = self.step()
            self.train_seconds += time.perf_counter() - start
            self.record(trajectories, metrics, time.perf_counter() - start)
            if self.steps_done < self.config.max_steps and self.check_is_due(actions_before):
                reached = self.passes(self.evaluate())
            if self.steps_done % self.config.checkpoint.every_steps == 0:
                self.save()
        after = self.final_evaluation()
        self.save()
        return {
            "status": "finished",
            "target_reached": reached if self.config.evaluation.target_score is not None else None,
            "steps": self.steps_done,
            "actions": self.num_actions,
            "seconds": round(self.train_seconds, 3),
            "evaluation": {"before": before, "after": after},
        }

    def check_is_due(self, actions_before: int) -> bool:
        """Return whether the step just taken crossed an evaluation mark."""
        options = self.config.evaluation
        by_steps = options.every_steps is not None and self.steps_done % options.every_steps == 0
        by_actions = (
            options.every_actions is not None
            and self.num_actions // options.every_actions > actions_before // options.every_actions
        )
        return by_steps or by_actions

    def passes(self, result: dict[str, Any]) -> bool:
        """Count checks in a row at or above the target score; return whether they are enough to stop."""
        target = self.config.evaluation.target_score
        if target is None:
            return False
        self.checks_passed = self.checks_passed + 1 if result["score"] >= target else 0
        return self.checks_passed >= self.config.evaluation.target_checks

    def evaluate(self, *, full: bool = False) -> dict[str, Any]:
        """Score the policy on what is held out; show it and append it to the record."""
        start = time.perf_counter()
        result: Evaluation = self.experience.evaluate(self.steps_done, full=full)
        content = result.as_dict()
        self.folder.append("evaluations.jsonl", {"step": self.steps_done, "full": full, **content})
        self.folder.append(
            "timing.jsonl",
            {"step": self.steps_done, "evaluation_seconds": time.perf_counter() - start},
        )
        self.observer.evaluation(self.steps_done, content)
        return content

    def final_evaluation(self) -> dict[str, Any]:
        """Return the last evaluation, from the record where a run killed after it left it there."""
        full = self.config.evaluation.full_report
        found = self.evaluations().get(self.steps_done)
        return found if found is not None and found["full"] == full else self.evaluate(full=full)

    def evaluations(self) -> dict[int, dict[str, Any]]:
        """Return the evaluations already on record, by step."""
        return {row.pop("step"): row for row in self.folder.rows("evaluations.jsonl")}

    def record(self, trajectories: list[Trajectory], metrics: dict[str, Any], seconds: float) -> None:
        """Append the step's rows and show them."""
        metrics = {"step": self.steps_done, **metrics, "learning_rate": self.learner.current_learning_rate()}
        num_actions = sum(len(t) for t in trajectories)
        timing = {
            "step": self.steps_done,
            "seconds": seconds,
            "tokens_per_second": num_actions / max(1e-9, self.seconds["sample"]),
            **{f"{stage}_seconds": value for stage, value in self.seconds.items()},
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "eta_seconds": seconds * (self.config.max_steps - self.steps_done),
        }
        self.folder.append("metrics.jsonl", metrics)
        self.folder.append("timing.jsonl", timing)
        shown = [self.experience.show(t) for t in trajectories]
        for sample in shown:
            self.folder.append("samples.jsonl", {"step": self.steps_done, **sample})
        self.observer.step(metrics, timing, shown[self.steps_done % len(shown)])

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        tensors, numbers = self.learner.state()
        numbers |= {
            "num_actions": self.num_actions,
            "train_seconds": self.train_seconds,
            "checks_passed": self.checks_passed,
        }
        state = checkpoint.TrainState(self.steps_done, tensors, numbers)
        checkpoint.save(self.folder.path / "checkpoints", state, self.config.checkpoint.keep)

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, or from the start; rows after it are cut back."""
        state, notes = checkpoint.load_newest(self.folder.path / "checkpoints")
        for text in notes:
            self.observer.note(text)
        if state is not None:
            self.learner.restore(state.tensors, state.numbers)
            self.steps_done = state.step
            self.num_actions = state.numbers["num_actions"]
            self.train_seconds = state.numbers["train_seconds"]
            self.checks_passed = state.numbers["checks_passed"]
        self.folder.cut_back(self.steps_done)


def use_threads(threads: int | None) -> int:
    """Set how many threads torch uses, and that its results repeat; return the number."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    return torch.get_num_threads()

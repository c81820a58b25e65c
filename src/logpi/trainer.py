"""The loop. The only file that sees every stage of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

from logpi import checkpoint
from logpi.alerts import alerts
from logpi.algorithms import Algorithm
from logpi.batching import minibatches
from logpi.config import Config
from logpi.credit import assign_credit
from logpi.errors import MismatchError, NonFiniteError
from logpi.evaluation import Evaluation
from logpi.experience import Experience
from logpi.interrupts import Abandoned, Interrupts
from logpi.journal import Journal
from logpi.learner import Gradient, Learner, Update
from logpi.metrics import demonstration_metrics, step_metrics
from logpi.platforms import keep_few_kernels, keep_freed_memory, peak_memory_bytes
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
        *,
        run_id: str = "",
        first_step: int = 0,
        interrupts: Interrupts | None = None,
    ):
        """`first_step` is where the run began: 0, or the step that it was forked at."""
        self.config, self.experience, self.algorithm = config, experience, algorithm
        self.learner, self.folder, self.observer, self.run_id = learner, folder, observer, run_id
        self.interrupts = interrupts or Interrupts()
        self.first_step = first_step
        self.measure = step_metrics if experience.draws else demonstration_metrics
        self.journal = Journal(folder.path / "journal", config.journal_key())
        self.steps_done, self.num_actions = 0, 0  # of the whole run
        self.train_seconds, self.checks_passed, self.skips_in_a_row = 0.0, 0, 0
        self.check_is_open = False  # an evaluation is due, or a signal has cut it short
        self.seconds: dict[str, float] = {}
        self.updates_before_step = 0
        self.said: set[str] = set()  # alerts; each is said once a session

    # --- one step ----------------------------------------------------------------------------------------------

    def step(self) -> tuple[list[Trajectory], dict[str, Any]]:
        """Sample trajectories, reward them, turn rewards into advantages, take the gradient, update the weights."""
        step, options = self.steps_done, self.config.algorithm
        several_updates = options.updates_per_rollout * options.num_minibatches > 1
        self.updates_before_step = self.learner.num_updates

        trajectories = self.journal.read(step + 1)  # there, if a process died after it had sampled and scored them
        if trajectories is None:
            trajectories = self.sample_and_reward(step)
            self.journal.write(step + 1, trajectories)
        with self.timed("advantage"):
            batch = make_batch(self.trainable(trajectories))
            batch = self.learner.annotate(batch, several_updates=several_updates)
            batch = assign_credit(self.algorithm, batch, standardise=options.standardise_advantages)
            self.learner.follow(batch)

        updates: list[Update] = []
        for minibatch in minibatches(
            batch,
            self.algorithm.token_weights,
            updates=options.updates_per_rollout,
            num_minibatches=options.num_minibatches,
            seed=self.config.seed,
            step=step,
        ):
            with self.timed("gradient"):
                gradient = self.learner.backward(minibatch)
            self.check_parity(gradient, first=not updates)
            with self.timed("update"):
                updates.append(self.learner.update(gradient, step))

        if self.experience.order is not None:
            self.experience.order.follow(step, trajectories)
        self.steps_done += 1
        self.num_actions += sum(len(t) for t in trajectories)
        return trajectories, self.measure(trajectories, batch, updates)

    def sample_and_reward(self, step: int) -> list[Trajectory]:
        """Sample and score the step's prompts; then spare ones, where there are some, for groups of equal rewards."""
        found: list[Trajectory] = []
        num_planned, taken = len(self.experience.plan(step)), 0
        wanted = missing = num_planned - self.config.rollout.num_spare_prompts
        while missing and taken < num_planned:
            places = range(taken, min(taken + missing, num_planned))
            with self.timed("sample"):
                sampled = self.experience.sample(step, self.learner.num_updates, places)
            with self.timed("reward"):
                found += self.experience.reward(sampled)
            taken, missing = places.stop, wanted - len(informative_groups(found))
        return found

    def trainable(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Return what the step trains on: what was scored; with spare prompts, groups whose rewards differ alone."""
        found = scored(trajectories, self.steps_done + 1)
        informative = informative_groups(found)
        if self.config.rollout.num_spare_prompts and informative:
            found = [t for t in found if t.group in informative]
        return found

    def check_parity(self, gradient: Gradient, *, first: bool) -> None:
        """Raise MismatchError in a strict run whose first gradient saw other log-probs than the sampler recorded."""
        if self.config.strict and first and gradient.log_ratio_max:
            raise MismatchError(
                f"step {self.steps_done + 1}: sampler and learner differ by up to {gradient.log_ratio_max:.1e} in a "
                "log-prob; nothing was updated. Without --strict the same command goes on and records mismatch/max"
            )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add a stage's wall time to the step's split. Until the step's first update a signal ends it at once."""
        unchanged = self.learner.num_updates == self.updates_before_step
        start = time.perf_counter()
        with self.interrupts.abandonable() if unchanged and stage != "update" else nullcontext():
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    # --- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to `max_steps`, or until the target score holds, or until a signal says stop; return the summary."""
        self.resume()
        try:
            before, after = self._run()
        except Abandoned:
            if self.steps_done:
                self.save()
            return {"status": "stopped", "signal": self.interrupts.signal, **self.progress()}
        return {
            "status": "finished",
            "target_reached": self.reached if self.config.evaluation.target_score is not None else None,
            **self.progress(),
            "evaluation": {"before": before, "after": after},
        }

    def _run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        full = self.config.evaluation.full_report
        before = self.recorded_evaluation(self.first_step, full) or self.evaluate(full=full)
        self.check()
        while self.steps_done < self.config.max_steps and not self.reached:
            self.seconds = {}
            start = time.perf_counter()
            actions_before = self.num_actions
            trajectories, metrics = self.step()
            seconds = time.perf_counter() - start
            self.train_seconds += seconds
            self.record(trajectories, metrics, seconds)
            self.check_is_open = self.steps_done < self.config.max_steps and self.check_is_due(actions_before)
            self.check()
            if self.steps_done % self.config.checkpoint.every_steps == 0:
                self.save()
        after = self.recorded_evaluation(self.steps_done, full) or self.evaluate(full=full)
        self.save()
        return before, after

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"steps": self.steps_done, "actions": self.num_actions, "seconds": round(self.train_seconds, 3)}

    def check_is_due(self, actions_before: int) -> bool:
        """Return whether the step just taken crossed an evaluation mark."""
        options = self.config.evaluation
        by_steps = options.every_steps is not None and self.steps_done % options.every_steps == 0
        by_actions = (
            options.every_actions is not None
            and self.num_actions // options.every_actions > actions_before // options.every_actions
        )
        return by_steps or by_actions

    def check(self) -> None:
        """Take the evaluation that is due, if one is, and count the checks in a row at or above the target score."""
        if self.check_is_open:
            result = self.recorded_evaluation(self.steps_done, False) or self.evaluate()
            target = self.config.evaluation.target_score
            self.checks_passed = self.checks_passed + 1 if target is not None and result["score"] >= target else 0
            self.check_is_open = False

    @property
    def reached(self) -> bool:
        """Whether the target score has held for as many checks as asked for."""
        return self.checks_passed >= self.config.evaluation.target_checks

    def evaluate(self, *, full: bool = False) -> dict[str, Any]:
        """Score the policy on what is held out; show it and append it to the record."""
        start = time.perf_counter()
        with self.interrupts.abandonable():
            result: Evaluation = self.experience.evaluate(self.steps_done, full=full)
        content = result.as_dict()
        self.folder.append("evaluations.jsonl", [{"step": self.steps_done, "full": full, **content}])
        seconds = time.perf_counter() - start
        self.folder.append("timing.jsonl", [{"step": self.steps_done, "evaluation_seconds": seconds}])
        self.observer.evaluation(self.steps_done, content)
        return content

    def recorded_evaluation(self, step: int, full: bool) -> dict[str, Any] | None:
        """Return the evaluation of a step that is on record: a process died, or ended, after it."""
        rows = [row for row in self.folder.rows("evaluations.jsonl") if row["step"] == step and row["full"] == full]
        return {k: v for k, v in rows[-1].items() if k not in ("step", "full")} if rows else None

    def record(self, trajectories: list[Trajectory], metrics: dict[str, Any], seconds: float) -> None:
        """Append the step's rows and show them. Raises NonFiniteError after too many skipped updates in a row."""
        metrics = {"step": self.steps_done, **metrics, "learning_rate": self.learner.current_learning_rate()}
        timing = {
            "step": self.steps_done,
            "seconds": seconds,
            **{f"{stage}_seconds": value for stage, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "eta_seconds": seconds * (self.config.max_steps - self.steps_done),
        }
        busy = self.seconds.get("sample") if self.experience.draws else seconds
        if busy is not None:  # else the step came from the journal
            timing["tokens_per_second"] = metrics["num_tokens"] / max(1e-9, busy)
        shown = [self.experience.show(t) for t in trajectories]
        self.folder.append("metrics.jsonl", [metrics])
        self.folder.append("timing.jsonl", [timing])
        self.folder.append("samples.jsonl", [{"step": self.steps_done, **sample} for sample in shown])
        self.observer.step(metrics, timing, shown[self.steps_done % len(shown)] if self.experience.draws else None)
        self.count_skips(metrics)
        if self.config.command == "train" and self.config.task is not None and self.steps_done % 5 == 0:
            rows, checks = (list(self.folder.rows(f"{name}.jsonl")) for name in ("metrics", "evaluations"))
            for text in alerts(rows, checks, self.said):
                self.observer.note(f"step {self.steps_done}: {text}")

    def count_skips(self, metrics: dict[str, Any]) -> None:
        """Say what was skipped and keep its trajectories; raise NonFiniteError after too many steps in a row."""
        if "skipped_updates" not in metrics:
            self.skips_in_a_row = 0
            return
        self.skips_in_a_row += 1
        kept = self.journal.keep(self.steps_done, self.folder.path / "skipped")
        problem = f"step {self.steps_done}: {metrics['skipped_because']}; its trajectories are kept in {kept}"
        if self.skips_in_a_row >= self.config.learner.max_skipped_steps:
            raise NonFiniteError(
                f"{problem}. Nothing was updated in {self.skips_in_a_row} steps in a row: lower learner.learning_rate, "
                'or compute in policy.dtype "float32"'
            )
        self.observer.note(f"{problem}; weights and optimiser are as they were")

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on; then forget what only older ones needed."""
        tensors, numbers = self.learner.state()
        if self.experience.order is not None:
            tensors |= self.experience.order.state()
        numbers |= {
            "num_actions": self.num_actions,
            "train_seconds": self.train_seconds,
            "checks_passed": self.checks_passed,
            "check_is_open": self.check_is_open,
            "skips_in_a_row": self.skips_in_a_row,
        }
        self.folder.flush()
        folder = self.folder.path / "checkpoints"
        state = checkpoint.TrainState(self.steps_done, tensors, numbers, self.run_id)
        checkpoint.save(folder, state, self.config.checkpoint.keep)
        self.journal.prune(checkpoint.steps(folder)[0])

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, or from the start; rows after it are cut back."""
        state, notes = checkpoint.load_newest(self.folder.path / "checkpoints", self.run_id)
        for text in notes:
            self.observer.note(text)
        if state is not None:
            self.learner.restore(state.tensors, state.numbers)
            if self.experience.order is not None:
                self.experience.order.restore(state.tensors)
            self.steps_done = state.step
            self.num_actions = state.numbers["num_actions"]
            self.train_seconds = state.numbers["train_seconds"]
            self.checks_passed = state.numbers["checks_passed"]
            self.check_is_open = state.numbers["check_is_open"]
            self.skips_in_a_row = state.numbers["skips_in_a_row"]
        self.folder.cut_back(self.steps_done)
        missing = set(range(self.first_step + 1, self.steps_done + 1))
        missing -= {row["step"] for row in self.folder.rows("metrics.jsonl")}
        if missing:
            self.observer.note(
                f"metrics.jsonl was damaged: it lacks the rows of {len(missing)} steps, {min(missing)} first"
            )


def informative_groups(trajectories: list[Trajectory]) -> set[int]:
    """Return the groups in which not all rewards are equal."""
    totals: dict[int, set[float]] = {}
    for t in trajectories:
        if t.rewards is not None and not t.is_baseline:
            totals.setdefault(t.group, set()).add(float(t.rewards.sum()))
    return {group for group, different in totals.items() if len(different) > 1}


def scored(trajectories: list[Trajectory], step: int) -> list[Trajectory]:
    """Return the trajectories that have rewards. Raises NonFiniteError when none has."""
    found = [t for t in trajectories if t.rewards is not None]
    if all(t.is_baseline for t in found):
        reasons = ", ".join(sorted({str(t.failure) for t in trajectories}))
        raise NonFiniteError(
            f"step {step}: none of the {len(trajectories)} trajectories can be trained on ({reasons}); "
            "the last checkpoint stands"
        )
    return found


def use_threads(threads: int | None) -> int:
    """Set how many threads torch uses, that its results repeat and its memory is kept; return the number."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import torch's compiler too, 0.9 s
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # nothing reads it before it is written
    keep_freed_memory()
    keep_few_kernels()
    return torch.get_num_threads()

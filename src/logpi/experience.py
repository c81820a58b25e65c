"""Where a trainer's trajectories and rewards come from, behind one set of verbs; here: a language task's prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from logpi.config import RewardConfig
from logpi.drift import UNRELATED, kl_from_start, kl_to_start
from logpi.errors import InputError
from logpi.evaluation import Evaluation, evaluate_problems
from logpi.policies.causal_lm import CausalLM
from logpi.policies.chat import prompt_tokens
from logpi.policies.encoder import Encoder
from logpi.randomness import Stream
from logpi.rollout.engine import Sampling, TokenPrompt
from logpi.rollout.prompt_order import PromptOrder
from logpi.tasks.base import Problem, Task
from logpi.tasks.problems import columns_of
from logpi.tasks.rewarding import as_completions, score
from logpi.trajectory import Trajectory
from logpi.writing import writer_of


class Experience(Protocol):
    """What the trainer asks of a task or an environment."""

    draws: bool  # by the policy; False: the trajectories are given, demonstrations
    order: PromptOrder | None  # of the prompts, where there are prompts to choose from

    def sample(self, step: int, policy_version: int, places: range) -> list[Trajectory]:
        """Sample the trajectories of these places of the step's plan: a pure function of seed, step and weights."""
        ...

    def plan(self, step: int) -> list[int]:
        """Return the uids of the prompts of this step, in order; the last ones are spare where there are some."""
        ...

    def reward(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Return the trajectories with rewards, in their order. One that no reward function scored has none, and one
        that this leaves alone in its group."""
        ...

    def evaluate(self, step: int, *, full: bool = False) -> Evaluation:
        """Score the policy on what is held out."""
        ...

    def show(self, trajectory: Trajectory) -> dict[str, Any]:
        """Return a trajectory as plain data for the record."""
        ...

    def before_and_after(self, record: Any) -> list[dict[str, Any]]:
        """Return held-out samples of the first and the last evaluation side by side; empty where there are none."""
        ...


class TaskExperience:
    """Prompts of a task, completed by a causal LM or tagged by an encoder, scored by the task's rewards."""

    draws = True

    def __init__(
        self,
        policy: CausalLM | Encoder,
        task: Task,
        *,
        seed: int,
        num_prompts: int,
        num_generations: int,
        max_completion_length: int,
        max_rows: int = 128,
        reward: RewardConfig | None = None,
        num_spare_prompts: int = 0,
        greedy_baseline: bool = False,
        upsampling: float = 0.0,
        beginnings: Callable[[int, int], Tensor] | None = None,
        start_policy: Callable[[], CausalLM] | None = None,
    ):
        """`start_policy` loads the policy that training began with, to measure how far it went. `greedy_baseline` adds
        each prompt's likeliest completion, to compare the others with. `beginnings` returns the tokens that a prompt's
        completions begin with, by uid and step: given, not drawn."""
        self.policy, self.task, self.seed, self.start_policy = policy, task, seed, start_policy
        self.writer = writer_of(policy)
        self.num_prompts, self.num_spare_prompts, self.num_generations = num_prompts, num_spare_prompts, num_generations
        self.options, self.greedy_baseline, self.beginnings = reward or RewardConfig(), greedy_baseline, beginnings
        self.sampling = Sampling(max_completion_length, seed, Stream.ROLLOUT, max_rows=max_rows)
        self.greedy = replace(self.sampling, stream=Stream.EVALUATION, greedy=True)
        self.problems = {problem.uid: problem for problem in task.train}
        self.order = PromptOrder(list(self.problems), seed, num_prompts + num_spare_prompts, upsampling)
        if self.options.dense and any("partial" in problem.columns for problem in task.train):
            raise InputError('the column "partial" has the name of what reward.dense tells reward functions; rename it')
        asked = [(problem, True) for problem in task.train] + [(problem, False) for problem in task.heldout]
        self.check_length(*max(asked, key=lambda pair: len(self._begun_prompt(*pair))))

    # --- prompts and texts -------------------------------------------------------------------------------------

    def _begun_prompt(self, problem: Problem, is_trained: bool) -> Tensor:
        """Return a prompt's tokens, and behind them what its completions begin with at the first step of training."""
        tokens = self.writer.tokens(problem)
        return torch.cat([tokens, self.beginnings(problem.uid, 0)]) if self.beginnings and is_trained else tokens

    def check_length(self, problem: Problem, is_trained: bool = False) -> None:
        """Raise InputError where prompt and completion don't fit the model's context."""
        num_tokens, limit = len(self._begun_prompt(problem, is_trained)), self.policy.context_length
        if num_tokens + self.sampling.max_new_tokens > limit:
            raise InputError(
                f"the prompt of row {problem.uid} has {num_tokens} tokens; with rollout.max_completion_length="
                f"{self.sampling.max_new_tokens} that is over the model's context of {limit}; shorten one of them"
            )

    def complete(self, prompts: Sequence[Problem], sampling: Sampling, num_generations: int = 1) -> list[Trajectory]:
        """Complete problems outside of training."""
        ready = [TokenPrompt(p.uid, self.writer.tokens(p)) for p in prompts]
        return self.writer.draw(self.policy, ready, num_generations, sampling)

    def complete_greedily(self, problems: Sequence[Problem]) -> list[Trajectory]:
        """Take the likeliest token each time, one completion a problem."""
        return self.complete(problems, self.greedy)

    def complete_heldout(self, problems: Sequence[Problem]) -> list[Trajectory]:
        """Complete problems as the task wants it at evaluations: greedily, or by the same draws each time."""
        drawn = replace(self.sampling, stream=Stream.EVALUATION)
        return self.complete(problems, drawn) if self.task.draws else self.complete_greedily(problems)

    # --- the five steps' first two -----------------------------------------------------------------------------

    def plan(self, step: int) -> list[int]:
        """Return the uids of the step's problems, the spare ones behind the others."""
        return self.order.plan(step)

    def sample(self, step: int, policy_version: int, places: range) -> list[Trajectory]:
        plan = self.plan(step)
        seen = Counter(plan[: places.start])  # a problem that comes twice in a step gets other draws the second time
        prompts, given = [], []
        for uid in plan[places.start : places.stop]:
            tokens = self.writer.tokens(self.problems[uid])
            given.append(self.beginnings(uid, step) if self.beginnings else tokens[:0])
            first_sample = seen[uid] * self.num_generations
            prompts.append(TokenPrompt(uid, torch.cat([tokens, given[-1]]), first_sample, len(given[-1])))
            seen[uid] += 1
        versions = {"step": step, "policy_version": policy_version}
        found = self.writer.draw(self.policy, prompts, self.num_generations, self.sampling, **versions)
        if self.greedy_baseline:
            likeliest = self.writer.draw(self.policy, prompts, 1, self.greedy, **versions)
            found += [replace(t, is_baseline=True) for t in likeliest]
        return [
            replace(_begun(t, given[t.group]), group=places.start + t.group, weight=self.order.weight(t.prompt_uid))
            for t in found
        ]

    def reward(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        sound = [t for t in trajectories if t.failure is None]
        problems = [self.problems[t.prompt_uid] for t in sound]
        prompts = [p.prompt for p in problems]
        completions = as_completions(prompts, [self.writer.text(t) for t in sound])
        ids = [t.actions.tolist() for t in sound]
        on_failure = self.options.on_failure
        scores = score(self.task.rewards, prompts, completions, ids, columns_of(problems), on_failure=on_failure)
        totals, failures = self._of_lengths(sound, scores.total), scores.failures
        known = [t for t, total in zip(sound, totals, strict=True) if total is not None]
        num_known = Counter(t.group for t in known if not t.is_baseline)
        compared = {t.group for t in known if t.is_baseline}

        def is_alone(t: Trajectory) -> bool:
            """Whether nothing is left in its group to compare it with."""
            return num_known[t.group] == 1 < self.num_generations or (self.greedy_baseline and t.group not in compared)

        rewarded = iter(
            replace(
                t,
                rewards=None if is_alone(t) else paid,
                rewards_by_name={name: values[i] for name, values in scores.by_name.items()},
                failure=failures.get(i, "truncated" if scored is not None else "no reward applies")
                if total is None
                else None,
            )
            for i, (t, total, paid, scored) in enumerate(
                zip(sound, totals, self._paid(sound, totals), scores.total, strict=True)
            )
        )
        return [next(rewarded) if t.failure is None else t for t in trajectories]

    def _of_lengths(self, trajectories: Sequence[Trajectory], totals: Sequence[float | None]) -> list[float | None]:
        """Return the rewards less the overlong punishment; None for truncated completions where they are left out.

        R − clip((|y| − (L − c))/c, 0, 1), L the longest allowed, c = overlong_tokens (Yu et al. 2025, equation 13).
        """
        out, limit, span = [], self.sampling.max_new_tokens, self.options.overlong_tokens
        for t, total in zip(trajectories, totals, strict=True):
            if total is not None and span is not None:
                total -= min(1.0, max(0.0, (len(t) - (limit - span)) / span))
            is_out = t.truncated and self.options.truncated == "exclude" and not t.is_baseline
            out.append(None if is_out else total)
        return out

    def _paid(self, trajectories: Sequence[Trajectory], totals: Sequence[float | None]) -> list[Tensor | None]:
        """Return rewards per action that sum to the totals: paid at the end, or (`dense`) as the text comes to be worth
        them, what no function scores being worth as much as before."""
        if not self.options.dense:
            return [None if total is None else _by_action([total], len(t)) for t, total in zip(trajectories, totals)]
        assert self.writer.beginnings is not None  # the command refuses a tagger
        begun = [[] if total is None else self.writer.beginnings(t) for t, total in zip(trajectories, totals)]
        asked: dict[tuple[int, str], list[int]] = {}  # each text of a problem once, with its tokens
        for t, texts in zip(trajectories, begun):
            actions = t.actions.tolist()
            for length, text in enumerate(texts, 1):
                asked.setdefault((t.prompt_uid, text), actions[:length])
        problems = [self.problems[uid] for uid, _ in asked]
        prompts = [p.prompt for p in problems]
        completions = as_completions(prompts, [text for _, text in asked])
        columns = columns_of(problems) | {"partial": [True] * len(asked)}
        ids, on_failure = list(asked.values()), self.options.on_failure
        scores = score(self.task.rewards, prompts, completions, ids, columns, on_failure=on_failure)
        worth = {key: _in_steps(value) for key, value in zip(asked, scores.total, strict=True)}
        return [
            None
            if total is None
            else _by_action([*(worth[t.prompt_uid, text] for text in texts), _in_steps(total)], len(t))
            for t, texts, total in zip(trajectories, begun, totals)
        ]

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluate(self, step: int, *, full: bool = False) -> Evaluation:
        """Complete and score every held-out problem. `full` adds what else before and after are compared by."""
        result, texts = self._evaluate(self.task.heldout)
        extras: dict[str, Any] = {"texts": texts[:8]}
        if self.task.watched:
            extras["watched"] = list(self.task.watched)
        return replace(
            result, extras=result.extras | extras | (self._full_report(step) if full and self.task.heldout else {})
        )

    def _evaluate(self, problems: Sequence[Problem]) -> tuple[Evaluation, list[dict[str, Any]]]:
        metrics = self.task.metrics or self.task.rewards
        return evaluate_problems(
            problems,
            metrics,
            self.complete_heldout,
            self.writer.text,
            self.options.on_failure,
            self.task.corpus_metrics,
            self.task.score,
        )

    def _full_report(self, step: int) -> dict[str, Any]:
        probes = {name: self._evaluate(problems)[0].as_dict() for name, problems in self.task.probes.items()}
        probe = replace(self.sampling, stream=Stream.PROBE)
        drawn = self.complete(self.task.heldout[:20], probe, 8)
        tokens = torch.cat([t.entropies for t in drawn])
        by_prompt: dict[int, set[str]] = {}
        for trajectory in drawn:
            by_prompt.setdefault(trajectory.group, set()).add(self.writer.text(trajectory))
        extras: dict[str, Any] = {
            "probes": probes,
            "entropy": float(tokens.mean()),
            "distinct_of_8": sum(len(texts) for texts in by_prompt.values()) / len(by_prompt),
        }
        if step == 0:
            extras["few_shot"] = {str(n): self._few_shot(n) for n in (2, 4) if n <= len(self.task.examples)}
            return extras | (
                kl_from_start(self.policy, self.policy, drawn) if isinstance(self.policy, CausalLM) else {}
            )
        if self.start_policy is not None and isinstance(self.policy, CausalLM):
            start = self.start_policy()
            extras["kl_to_start"] = kl_to_start(start, self.policy, self._unrelated(), probe)
            extras |= kl_from_start(start, self.policy, drawn)
        return extras

    def _few_shot(self, num_examples: int) -> dict[str, Any]:
        """Score held-out problems with solved examples in front of the question."""
        turns: list[dict[str, Any]] = []
        for question, answer in self.task.examples[:num_examples]:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = "".join(f"{question}{answer}\n" for question, answer in self.task.examples[:num_examples])
        problems = [
            replace(p, prompt=text + p.prompt if isinstance(p.prompt, str) else [*turns, *p.prompt])
            for p in self.task.heldout
        ]
        return self._evaluate(problems)[0].as_dict()

    def _unrelated(self) -> list[Tensor]:
        chat = isinstance(self.task.heldout[0].prompt, list)
        return [
            prompt_tokens(self.policy.tokenizer, [{"role": "user", "content": text}] if chat else text)
            for text in UNRELATED
        ]

    def before_and_after(self, record: Any) -> list[dict[str, Any]]:
        """Return held-out samples of the first and the last evaluation side by side, failures among them."""
        rows = {row["step"]: row for row in record.rows("evaluations.jsonl") if "texts" in row}
        if len(rows) < 2:
            return []
        first, last = rows[min(rows)]["texts"], rows[max(rows)]["texts"]
        return [
            {
                "prompt": problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"],
                "before": before["text"],
                "after": after["text"],
                "reward_before": before["score"],
                "reward_after": after["score"],
            }
            for problem, before, after in zip(self.task.heldout, first, last, strict=False)
        ]

    def show(self, trajectory: Trajectory) -> dict[str, Any]:
        prompt = self.problems[trajectory.prompt_uid].prompt
        return {
            "prompt_uid": trajectory.prompt_uid,
            "sample": trajectory.sample,
            "prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"],
            "completion": self.writer.text(trajectory),
            "tokens": len(trajectory),
            "reward": None if trajectory.rewards is None else float(trajectory.rewards.sum()),
            "terminated": trajectory.terminated,
            **({"is_baseline": True} if trajectory.is_baseline else {}),
            **({} if trajectory.failure is None else {"failure": trajectory.failure}),
        }


def _begun(trajectory: Trajectory, given: Tensor) -> Trajectory:
    """Return a completion that was drawn behind `given` tokens with those as its first actions."""
    if not len(given):
        return trajectory
    nothing = torch.zeros(len(given))
    return replace(
        trajectory,
        actions=torch.cat([given, trajectory.actions]),
        behavior_log_probs=torch.cat([nothing, trajectory.behavior_log_probs]),
        entropies=torch.cat([nothing, trajectory.entropies]),
        inputs=trajectory.inputs[: -len(given)],
        num_given=len(given),
    )


def _by_action(worth: Sequence[float | None], length: int) -> Tensor:
    """Return what each of the last actions adds to the worth of the text, [length]; 0 for those before them."""
    known = [0.0]
    for value in worth:
        known.append(known[-1] if value is None else value)
    rewards = torch.zeros(length, dtype=torch.float64)
    rewards[length - len(worth) :] = torch.tensor(known, dtype=torch.float64).diff()
    return rewards


def _in_steps(value: float | None) -> float | None:
    """Return the multiple of 2⁻⁴⁰ next to a score: differences of those add up to the last one without an error, and so
    completions of equal scores have equal rewards."""
    return None if value is None else round(value * 2**40) / 2**40

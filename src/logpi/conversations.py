"""The experience of a task of several turns: episodes with an environment that replies, and gives the rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from logpi.errors import InputError
from logpi.evaluation import Evaluation, estimate
from logpi.policies.causal_lm import CausalLM
from logpi.policies.chat import prompt_tokens
from logpi.randomness import Stream
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.rollout.episodes import Start, play
from logpi.rollout.prompt_order import PromptOrder
from logpi.tasks.base import Problem, Task
from logpi.trajectory import OWN, Trajectory


class ConversationExperience:
    """Episodes of a task's environment, a causal LM one side of each."""

    draws = True

    def __init__(
        self,
        policy: CausalLM,
        task: Task,
        *,
        seed: int,
        num_prompts: int,
        num_generations: int,
        max_completion_length: int,
        max_rows: int = 128,
        num_spare_prompts: int = 0,
        upsampling: float = 0.0,
    ):
        """`max_completion_length` is the limit of one message."""
        if policy.tokenizer.chat_template is None:
            raise InputError(f'task "{task.name}" has several turns, and the model\'s tokenizer has no chat template')
        self.policy, self.task, self.seed = policy, task, seed
        self.num_prompts, self.num_spare_prompts, self.num_generations = num_prompts, num_spare_prompts, num_generations
        self.sampling = Sampling(max_completion_length, seed, Stream.ROLLOUT, max_rows=max_rows)
        self.greedy = replace(self.sampling, seed=0, stream=Stream.EVALUATION, greedy=True)
        self.problems = {problem.uid: problem for problem in task.train}
        self.order = PromptOrder(list(self.problems), seed, num_prompts + num_spare_prompts, upsampling)

    # --- the five steps' first two -----------------------------------------------------------------------------

    def plan(self, step: int) -> list[int]:
        """Return the uids of the step's problems, the spare ones behind the others."""
        return self.order.plan(step)

    def sample(self, step: int, policy_version: int, places: range) -> list[Trajectory]:
        plan = self.plan(step)
        seen = Counter(plan[: places.start])  # a problem that comes twice in a step gets other draws the second time
        starts = []
        for uid in plan[places.start : places.stop]:
            starts.append(self._start(self.problems[uid], seen[uid] * self.num_generations))
            seen[uid] += 1
        versions = {"step": step, "policy_version": policy_version}
        found = self._play(starts, self.num_generations, self.sampling, Stream.ENVIRONMENT, **versions)
        return [replace(t, group=places.start + t.group, weight=self.order.weight(t.prompt_uid)) for t in found]

    def reward(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Return them as they are: the environment gave the rewards. One that is left alone in its group by failures
        loses its own: there is nothing to compare it with."""
        known = Counter(t.group for t in trajectories if t.rewards is not None)
        return [replace(t, rewards=None) if known[t.group] == 1 < self.num_generations else t for t in trajectories]

    def _start(self, problem: Problem, first_sample: int = 0) -> Start:
        assert not isinstance(problem.prompt, str)  # the task has checked it
        return Start(problem.uid, problem.prompt, problem.columns, first_sample)

    def _play(
        self, starts: Sequence[Start], num_generations: int, sampling: Sampling, stream: Stream, **versions: int
    ) -> list[Trajectory]:
        assert self.task.environment is not None
        options = {"max_turns": self.task.max_turns, "environment_stream": stream, **versions}
        return play(self.policy, self.task.environment, starts, num_generations, sampling, **options)

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluate(self, step: int, *, full: bool = False) -> Evaluation:
        """Play one greedy episode from every held-out problem, with the same users each time; the environment's scores
        are the metrics. Recorded replies, where the task has some, are compared with greedy ones, all together."""
        starts = [self._start(problem) for problem in self.task.heldout]
        played = self._play(starts, 1, self.greedy, Stream.EVALUATION_ENVIRONMENT)
        metrics = {
            name: estimate([t.rewards_by_name[name] or 0.0 for t in played]) for name in played[0].rewards_by_name
        }
        metrics["reward"] = estimate([float(t.rewards.sum()) for t in played if t.rewards is not None])
        score, *_ = metrics.values()
        extras: dict[str, Any] = {"texts": [self._shown(t) for t in played[:8]]}
        if self.task.replies is not None and self.task.compare is not None:
            recorded = [reply for problem in self.task.heldout for reply in self.task.replies(problem)]
            extras |= self.task.compare(self.reply_to(recorded), recorded)
        return Evaluation(**asdict(score), metrics=metrics, extras=extras)

    def reply_to(self, problems: Sequence[Problem]) -> list[str]:
        """Return the likeliest reply to each prompt, as text."""
        ready = [TokenPrompt(p.uid, prompt_tokens(self.policy.tokenizer, p.prompt)) for p in problems]
        found = generate(self.policy, ready, 1, self.greedy)
        texts = [t.actions[:-1] if t.terminated else t.actions for t in found]
        return self.policy.tokenizer.batch_decode(texts, skip_special_tokens=True)

    def before_and_after(self, record: Any) -> list[dict[str, Any]]:
        """Return held-out episodes of the first and the last evaluation side by side, failures among them."""
        rows = {row["step"]: row for row in record.rows("evaluations.jsonl") if "texts" in row}
        if len(rows) < 2:
            return []
        first, last = rows[min(rows)]["texts"], rows[max(rows)]["texts"]
        return [
            {
                "prompt": f"episode {before['prompt_uid']}",
                "before": before["completion"],
                "after": after["completion"],
                "reward_before": before["reward"],
                "reward_after": after["reward"],
            }
            for before, after in zip(first, last, strict=False)
        ]

    def transcript(self, trajectory: Trajectory) -> str:
        """Return the whole episode as text, with the tokens that mark who speaks."""
        tokens = trajectory.inputs.clone()
        tokens[tokens == OWN] = trajectory.actions
        return self.policy.tokenizer.decode(tokens)

    def _shown(self, trajectory: Trajectory) -> dict[str, Any]:
        return {
            "prompt_uid": trajectory.prompt_uid,
            "completion": self.transcript(trajectory),
            "reward": None if trajectory.rewards is None else float(trajectory.rewards.sum()),
            **trajectory.rewards_by_name,
        }

    def show(self, trajectory: Trajectory) -> dict[str, Any]:
        return self._shown(trajectory) | {
            "sample": trajectory.sample,
            "tokens": len(trajectory),
            "terminated": trajectory.terminated,
            **({} if trajectory.failure is None else {"failure": trajectory.failure}),
        }

"""Maximum likelihood: supervised fine-tuning on demonstrations, pre-training on text (next tokens, or masked ones).

∇ Σ_t log π(a_t | s_t) over what somebody else did is REINFORCE on their trajectories, with a reward of 1 for each
action and a discount of 0. So a warm start is an experience and a row of the table: loop, learner, checkpoints and
records are those of the policy gradient that follows it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logpi import estimators, losses
from logpi.algorithms import Algorithm
from logpi.batching import micro_batches
from logpi.errors import InputError
from logpi.evaluation import Estimate, Evaluation, estimate
from logpi.experience import Experience
from logpi.masking import sum_over_time
from logpi.policies.causal_lm import CausalLM
from logpi.policies.chat import prompt_tokens, woven
from logpi.policies.encoder import Encoder
from logpi.rollout.masking import masked
from logpi.rollout.prompt_order import places_of_step
from logpi.tasks.base import Problem, Task
from logpi.trajectory import OWN, Trajectory, make_batch

MAXIMUM_LIKELIHOOD = Algorithm(
    "maximum_likelihood",
    estimators.own_reward,
    losses.score_function,
    losses.per_token,
    kl="k1_in_reward",
    source="Fisher 1922, Philosophical Transactions A 222:309-368; as behaviour cloning: Pomerleau 1991",
)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what came after it, as tokens: all of the completion is trained, nothing of the prompt. Of a
    conversation the prompt is what others said, OWN where the completion's tokens stand."""

    uid: int
    prompt: Tensor  # [prompt_time]
    completion: Tensor  # [time], the end token its last one where it ended, and behind each message of a conversation
    terminated: bool = True

    def of_step(self, step: int) -> Demonstration:
        """Return what a step trains on: the same each time."""
        return self

    def trajectory(self, *, sample: int = 0, group: int = 0, policy_version: int = 0) -> Trajectory:
        """Return it as if it had been sampled: by a teacher whose every action is certain, and rewarded with 1."""
        certain = torch.zeros(len(self.completion))
        return Trajectory(
            prompt_uid=self.uid,
            sample=sample,
            group=group,
            policy_version=policy_version,
            actions=self.completion,
            behavior_log_probs=certain,
            entropies=certain,
            inputs=self.prompt,
            terminated=self.terminated,
            truncated=not self.terminated,
            rewards=torch.ones(len(self.completion), dtype=torch.float64),
        )


@dataclass(frozen=True)
class Hidden:
    """A piece of text whose masked tokens are to be found: other ones in each step."""

    uid: int
    tokens: Tensor  # [time]
    mask_id: int
    vocab_size: int
    seed: int

    def of_step(self, step: int) -> Demonstration:
        """Return the piece as a sentence that asks for this step's masked tokens, and those tokens."""
        numbers = {"seed": self.seed, "step": step, "uid": self.uid}
        seen, is_asked = masked(self.tokens, self.mask_id, self.vocab_size, **numbers)
        sentence = torch.stack([seen, torch.zeros_like(seen), is_asked.to(seen.dtype)], 1)
        return Demonstration(self.uid, sentence, self.tokens[is_asked])


def solutions(problems: Sequence[Problem], task: Task, policy: CausalLM) -> list[Demonstration]:
    """Return each problem's prompt and solution as tokens, the end token behind it. They are tokenised apart, as the
    policy meets them: a prompt is tokens, and what it says comes after. Raises InputError for a problem without a
    solution, or one that the model's context can't hold."""
    end, found = policy.eos_token_ids[0], []
    for problem in problems:
        solution = problem.columns.get(task.solution)
        if isinstance(solution, list) and isinstance(problem.prompt, list):
            prompt, completion = woven(policy.tokenizer, problem.prompt, solution, policy.eos_token_ids)
        elif isinstance(solution, str) and solution:
            prompt = prompt_tokens(policy.tokenizer, problem.prompt)
            completion = torch.tensor([*policy.tokenizer(solution, add_special_tokens=False)["input_ids"], end])
        else:
            raise InputError(
                f'task "{task.name}": row {problem.uid} has no text in its column "{task.solution}" '
                f"({solution!r:.40}), which is what would be imitated; fill it in or remove the row"
            )
        num_told = int((prompt != OWN).sum())
        if num_told + len(completion) > policy.context_length:
            raise InputError(
                f'task "{task.name}": row {problem.uid} has {num_told} + {len(completion)} tokens, prompt and '
                f"completion; the model's context is {policy.context_length}; shorten or remove the row"
            )
        found.append(Demonstration(problem.uid, prompt, completion))
    return found


def beginnings(
    problems: Sequence[Problem], task: Task, policy: CausalLM, num_tokens: int, max_steps: int
) -> Callable[[int, int], Tensor]:
    """Return what gives a problem's completions their first tokens, by uid and step: its solution's, `num_tokens` at
    step 0 and in a line down to 0 at `max_steps`, but never the last one (Ranzato et al. 2016, MIXER). Raises
    InputError as `solutions` does, and for a solution of several messages."""
    found = {d.uid: d for d in solutions(problems, task, policy)}
    for uid, demonstration in found.items():
        if bool((demonstration.prompt == OWN).any()):
            raise InputError(f'task "{task.name}": the solution of row {uid} has several messages; mixer begins one')

    def first_tokens(uid: int, step: int) -> Tensor:
        count = math.ceil(num_tokens * max(0, max_steps - step) / max_steps)
        return found[uid].completion[:-1][:count]

    return first_tokens


def blocks(documents: Sequence[Problem], policy: CausalLM, block_size: int) -> list[Demonstration]:
    """Return the documents, each with the end token behind it, joined and cut into blocks of `block_size` tokens (the
    last one may be shorter). A block's prompt is the token before it, for the first one an end token: so every token is
    predicted exactly once."""
    end, ids = policy.eos_token_ids[0], []
    for document in documents:
        ids += [*policy.tokenizer(document.prompt, add_special_tokens=False, verbose=False)["input_ids"], end]
    stream = torch.tensor([end, *ids])
    return [
        Demonstration(uid, stream[start : start + 1], stream[start + 1 : start + 1 + block_size], terminated=False)
        for uid, start in enumerate(range(0, len(ids), block_size))
    ]


def taggings(problems: Sequence[Problem], task: Task, policy: Encoder) -> list[Demonstration]:
    """Return each problem's sentence, with the labels of its words. Raises InputError for one that the policy has not,
    and for a number that is not that of the words."""
    found = []
    for problem in problems:
        words, labels = problem.columns["words"], str(problem.columns[task.solution]).split()
        if len(labels) != len(words) or (unknown := [label for label in labels if label not in policy.label_ids]):
            raise InputError(
                f'task "{task.name}": row {problem.uid} has {len(labels)} labels for {len(words)} words, {unknown[:1]} '
                "among them, which the model does not know; repair or remove the row"
            )
        actions = torch.tensor([policy.label_ids[label] for label in labels])
        found.append(Demonstration(problem.uid, policy.sentence(words, problem.columns["marked"]), actions))
    return found


def pieces(documents: Sequence[Problem], policy: Encoder, block_size: int, seed: int) -> list[Hidden]:
    """Return the documents cut into pieces of at most `block_size` tokens: none is joined with another."""
    tokenizer, found = policy.tokenizer, []
    for document in documents:
        ids = torch.tensor(tokenizer(document.prompt, add_special_tokens=False, verbose=False)["input_ids"])
        for piece in ids.split(block_size) if len(ids) else ():
            found.append(Hidden(len(found), piece, tokenizer.mask_token_id, len(tokenizer), seed))
    return found


class Demonstrations:
    """Trajectories that are given: the experience of a warm start."""

    draws = False
    order = None

    def __init__(
        self,
        policy: CausalLM | Encoder,
        task: Task,
        read: Callable[[Sequence[Problem]], Sequence[Demonstration | Hidden]],
        *,
        seed: int,
        batch_size: int,
        micro_batch_tokens: int,
        scoring: Experience | None = None,
    ):
        """`read` makes demonstrations of problems; `scoring` completes and scores the held-out ones, where the task
        has something to score them by."""
        self.policy, self.task, self.seed, self.scoring = policy, task, seed, scoring
        self.batch_size, self.micro_batch_tokens = batch_size, micro_batch_tokens
        self.train, self.heldout = read(task.train), read(task.heldout)

    def _places(self, step: int) -> list[int]:
        return places_of_step(self.seed, step, self.batch_size, len(self.train))

    def plan(self, step: int) -> list[int]:
        return [self.train[place].uid for place in self._places(step)]

    def sample(self, step: int, policy_version: int, places: range) -> list[Trajectory]:
        """Return the step's demonstrations; one that comes twice in a step is another sample the second time."""
        seen, found = Counter(), []
        for group, place in enumerate(self._places(step)):
            demonstration = self.train[place].of_step(step + 1)
            found.append(demonstration.trajectory(sample=seen[place], group=group, policy_version=policy_version))
            seen[place] += 1
        return found[places.start : places.stop]

    def reward(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        return trajectories

    def evaluate(self, step: int, *, full: bool = False) -> Evaluation:
        """Held-out loss and perplexity, then the task's own score. Without one the score is log π a token, −loss."""
        loss = self.heldout_loss()
        perplexity = Estimate(math.exp(loss.score), math.exp(loss.low), math.exp(loss.high), loss.n)
        metrics = {"loss": loss, "perplexity": perplexity} if loss.n else {}
        if self.scoring is None:
            return Evaluation(-loss.score, -loss.high, -loss.low, loss.n, metrics)
        found = self.scoring.evaluate(step, full=full)
        return replace(found, metrics=metrics | found.metrics)

    @torch.no_grad()
    def heldout_loss(self) -> Estimate:
        """Return the held-out loss in nats a token, L = −Σ log π / Σ tokens, with its 95 % interval over demonstrations
        (of the ratio, linearised: each one's deviation is its −log π − L·tokens over the mean number of tokens)."""
        if not self.heldout:
            return estimate([])
        batch = make_batch([d.of_step(0).trajectory(group=i) for i, d in enumerate(self.heldout)])
        surprisals = torch.zeros(len(batch), dtype=torch.float64)
        for rows in micro_batches(batch, self.micro_batch_tokens):
            part = batch.select(rows)
            log_probs = self.policy.evaluate(part.actions, part.mask, part.truncated, part.inputs).log_probs
            surprisals[rows] = -sum_over_time(log_probs.double(), part.mask)
        num_tokens = batch.lengths.double()
        loss = float(surprisals.sum() / num_tokens.sum())
        deviations = (surprisals - loss * num_tokens) / num_tokens.mean()
        return estimate((loss + deviations).tolist())

    def before_and_after(self, record: Any) -> list[dict[str, Any]]:
        return [] if self.scoring is None else self.scoring.before_and_after(record)

    def show(self, trajectory: Trajectory) -> dict[str, Any]:
        """Return which demonstration it was; the text is in the data."""
        return {"prompt_uid": trajectory.prompt_uid, "sample": trajectory.sample, "tokens": len(trajectory)}

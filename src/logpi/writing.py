"""How a policy meets a problem: the problem as tokens, completions drawn, actions as text again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logpi.policies.chat import prompt_tokens
from logpi.policies.encoder import Encoder
from logpi.rollout.engine import generate
from logpi.rollout.tagging import tag
from logpi.tasks.base import Problem
from logpi.trajectory import Trajectory


@dataclass(frozen=True)
class Writer:
    """What experience asks of a policy that answers problems."""

    tokens: Callable[[Problem], Tensor]
    text: Callable[[Trajectory], str]
    draw: Callable[..., list[Trajectory]]  # the engine's signature
    beginnings: Callable[[Trajectory], list[str]] | None = None  # the text after each action but the last


def writer_of(policy: Any) -> Writer:
    """Return how a causal LM or a tagger does it: a completion token by token, or a label for each word."""
    if isinstance(policy, Encoder):

        def tokens(problem: Problem) -> Tensor:
            return policy.sentence(problem.columns["words"], problem.columns["marked"])

        def text(trajectory: Trajectory) -> str:
            return " ".join(policy.labels[action] for action in trajectory.actions.tolist())

        return Writer(tokens, text, tag)

    def text_without_end(trajectory: Trajectory) -> str:
        actions = trajectory.actions.tolist()
        actions = actions[:-1] if trajectory.terminated else actions
        return policy.tokenizer.decode(actions, skip_special_tokens=True)

    def texts_so_far(trajectory: Trajectory) -> list[str]:
        actions = trajectory.actions.tolist()
        return [policy.tokenizer.decode(actions[:t], skip_special_tokens=True) for t in range(1, len(actions))]

    def tokens_of(problem: Problem) -> Tensor:
        return prompt_tokens(policy.tokenizer, problem.prompt)

    return Writer(tokens_of, text_without_end, generate, texts_so_far)

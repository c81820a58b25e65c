"""Episodes of several turns with a language model: token in, token out.

Each turn is sampled from everything so far as tokens, so what the policy wrote stays as it was drawn. Its tokens are
the actions; what others said stands in the trajectory's inputs. Draws are keyed by the position among the episode's
actions, which counts on across turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from logpi.environments.multi_turn import Conversation, Reply
from logpi.errors import RewardError
from logpi.policies.causal_lm import CausalLM
from logpi.policies.chat import WRITTEN, Message, prompt_tokens, reply_tokens
from logpi.randomness import Stream, uniforms
from logpi.rollout.engine import CACHE_BYTES, Sampling, TokenPrompt, generate
from logpi.rollout.kv_cache import PrefixCache
from logpi.trajectory import OWN, Trajectory


@dataclass(frozen=True)
class Start:
    """Where episodes begin: a prompt's messages, and what the environment is told."""

    uid: int
    messages: Sequence[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)
    first_sample: int = 0  # where its episodes are counted from


def play(
    policy: CausalLM,
    make: Callable[[], Conversation],
    starts: Sequence[Start],
    num_generations: int,
    sampling: Sampling,
    *,
    max_turns: int,
    environment_stream: Stream,
    step: int = 0,
    policy_version: int = 0,
) -> list[Trajectory]:
    """Play `num_generations` episodes from each start, in the starts' order, with the rewards that environments give.

    `sampling.max_new_tokens` is a message's limit. An episode is cut, and truncated, where a message reaches it (and is
    then not sent), behind `max_turns` messages, and where another one might not fit the model's context.
    """
    episodes = [
        _Episode(policy, make(), start, group, start.first_sample + i, seed)
        for group, start in enumerate(starts)
        for seed in [_seed(sampling.seed, environment_stream, step, start.uid)]
        for i in range(num_generations)
    ]
    running, kept = episodes, PrefixCache(CACHE_BYTES)
    for turn in range(max_turns):
        for episode in running if turn else ():
            episode.listen(room=sampling.max_new_tokens)
        running = [episode for episode in running if episode.goes_on]
        if not running:
            break
        prompts = [episode.prompt() for episode in running]
        messages = generate(policy, prompts, 1, sampling, step=step, kept=kept)
        for episode, message in zip(running, messages, strict=True):
            episode.add(message)
        running = [episode for episode in running if episode.goes_on]
    return [episode.trajectory(policy_version) for episode in episodes]


def _seed(seed: int, stream: Stream, step: int, uid: int) -> int:
    """Return the seed of an environment's episodes: the same for all of a group."""
    return int(uniforms(seed, stream, step, uid, 0, 0) * 2**53)


class _Episode:
    """An episode as it grows."""

    def __init__(self, policy: CausalLM, environment: Conversation, start: Start, group: int, sample: int, seed: int):
        self.policy, self.environment, self.start = policy, environment, start
        self.group, self.sample = group, sample
        opening = self._ask("reset", lambda: environment.reset(seed, **start.columns))
        self.messages = [*start.messages, *([] if opening is None else [{"role": "user", "content": opening}])]
        self.tokens = prompt_tokens(policy.tokenizer, self.messages)
        self.inputs = self.tokens
        self.drawn: list[Trajectory] = []  # a message each
        self.rewards: list[Tensor] = []
        self.reply: Reply | None = None
        self.goes_on, self.terminated = True, False

    def prompt(self) -> TokenPrompt:
        """Return all so far as the prompt of the next message."""
        return TokenPrompt(self.start.uid, self.tokens, self.sample, sum(map(len, self.drawn)))

    def add(self, message: Trajectory) -> None:
        """Take the policy's message, and let the environment reply unless the message is cut."""
        self.drawn.append(message)
        self.tokens = torch.cat([self.tokens, message.actions])
        self.inputs = torch.cat([self.inputs, torch.full((len(message),), OWN)])
        rewards = torch.zeros(len(message), dtype=torch.float64)
        self.goes_on = message.terminated
        if self.goes_on:
            text = self.policy.tokenizer.decode(message.actions[:-1], skip_special_tokens=True)
            self.reply = reply = self._ask("step", lambda: self.environment.step(text))
            rewards[-1] = self._number(reply.reward, "reward")
            self.terminated = reply.text is None
            self.goes_on = not self.terminated
        self.rewards.append(rewards)

    def listen(self, room: int) -> None:
        """Append the reply's tokens; the episode is cut where no `room` is left for a message behind them."""
        assert self.reply is not None and self.reply.text is not None
        reply = {"role": self.reply.role, "content": self.reply.text}
        told = reply_tokens(self.policy.tokenizer, self.messages, [reply], self.policy.eos_token_ids)
        self.goes_on = len(self.tokens) + len(told) + room <= self.policy.context_length
        if self.goes_on:
            self.messages += [WRITTEN, reply]
            self.tokens = torch.cat([self.tokens, told])
            self.inputs = torch.cat([self.inputs, told])

    def trajectory(self, policy_version: int) -> Trajectory:
        """Return the episode."""
        failure = self.drawn[-1].failure
        scores = self._ask("scores", self.environment.scores)
        return Trajectory(
            prompt_uid=self.start.uid,
            sample=self.sample,
            group=self.group,
            policy_version=policy_version,
            actions=torch.cat([m.actions for m in self.drawn]),
            behavior_log_probs=torch.cat([m.behavior_log_probs for m in self.drawn]),
            entropies=torch.cat([m.entropies for m in self.drawn]),
            inputs=self.inputs,
            terminated=self.terminated,
            truncated=not self.terminated,
            rewards=None if failure else torch.cat(self.rewards),
            rewards_by_name={name: self._number(value, name) for name, value in scores.items()},
            failure=failure,
        )

    def _ask(self, verb: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise RewardError(f"{self._name}.{verb} raised {type(error).__name__}: {str(error)[:200]}") from error

    def _number(self, value: Any, what: str) -> float:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardError(f"{self._name}: {what} is {value!r:.40}; it must be a finite number")
        return float(value)

    @property
    def _name(self) -> str:
        return f"environment {type(self.environment).__name__}, row {self.start.uid}"

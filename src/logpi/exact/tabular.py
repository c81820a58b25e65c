"""A language model of two prompts, three tokens and 15 completions each: everything about it can be summed exactly.

A softmax a prompt and prefix over {end, 1, 2}, at most 3 tokens: 7 completions that ended, 8 that were cut. Prompt 0
mostly fails, prompt 1 mostly succeeds. float64 throughout.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from logpi.policies.base import PolicyOutput, Reference, kl_exact, scatter
from logpi.trajectory import Trajectory

END, VOCABULARY, MAX_LENGTH, NUM_PROMPTS = 0, 3, 3, 2
PREFIXES: list[tuple[int, ...]] = [p for n in range(MAX_LENGTH) for p in product((1, 2), repeat=n)]
COMPLETIONS = [(*p, END) for p in PREFIXES] + list(product((1, 2), repeat=MAX_LENGTH))
REWARDS = ("binary", "real", "dense")
SOLUTIONS = [(1, 2, END), (2, END)]  # a prompt each: what completions begin with where a row asks for it


@cache
def states(completion: tuple[int, ...]) -> Tensor:
    """Return the index of the prefix before each action, [time]."""
    return torch.tensor([PREFIXES.index(completion[:t]) for t in range(len(completion))])


def rewards(kind: str, prompt: int, index: int) -> tuple[float, ...]:
    """Return the reward of each action of a completion. binary and real come at its last action, real is positive;
    dense comes at every action and never knows what follows."""
    completion = COMPLETIONS[index]
    if kind == "dense":
        seen = [sum((a + 2) * 4.3**i for i, a in enumerate(completion[: t + 1])) for t in range(len(completion))]
        return tuple(math.sin(7 * prompt + x) for x in seen)
    success = float(2 in completion)
    real = 1.1 + math.sin(5 * prompt + 3 * index) + success * len(completion)
    return (*[0.0] * (len(completion) - 1), success if kind == "binary" else real)


class TabularPolicy:
    """π(a | prompt, prefix) = softmax(logits[prompt, prefix])_a; V from a table, where there is one.

    `inputs` of a trajectory are its prompt and states, [time + 1]. It remembers the log-probs of its last evaluation:
    a gradient can then be taken apart into what each action adds.
    """

    def __init__(self, values: Tensor | None = None, shift: float = 0.0):
        """`values`: [prompts, prefixes]; without them the policy has no value function. `shift` makes it another."""
        draws = torch.Generator().manual_seed(0)
        logits = torch.randn(NUM_PROMPTS, len(PREFIXES), VOCABULARY, generator=draws, dtype=torch.float64)
        logits[0, :, 2] -= 2.0
        logits[1, :, 2] += 2.5
        other = torch.randn(logits.shape, generator=draws, dtype=torch.float64)
        self.logits = nn.Parameter(logits + shift * other)
        self.values = values
        self.has_values = values is not None
        self.evaluated: Tensor | None = None

    def log_probs(self) -> Tensor:
        """Return log π of every action in every state, [prompts, prefixes, actions]."""
        return self.logits.log_softmax(-1)

    def evaluate(
        self,
        actions: Tensor,
        mask: Tensor,
        truncated: Tensor,
        inputs: tuple[Any, ...],
        reference: Reference | None = None,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        padded = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
        prompts = padded[:, :1]
        at = torch.nn.functional.pad(padded[:, 1:], (0, actions.shape[1] + 1 - padded.shape[1]))
        chosen = torch.where(mask, self.log_probs()[prompts, at, actions], 0.0)
        self.evaluated = chosen
        values = None if self.values is None else torch.where(mask, self.values[prompts, at], 0.0)
        final = None if values is None else torch.zeros(len(actions), dtype=torch.float64)
        everywhere = -(self.log_probs().exp() * self.log_probs()).sum(-1)
        entropies = torch.where(mask, everywhere[prompts, at], 0.0)
        here = self.log_probs()[prompts, at][mask]
        kl = None if reference is None else scatter(kl_exact(here, reference.states[mask]), mask)
        return PolicyOutput(chosen, entropies, values, final, kl, here)

    def inputs(self, prompt: int, states: Tensor) -> Tensor:
        return torch.cat([torch.tensor([prompt]), states])

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {"logits": self.logits}

    def frozen_copy(self) -> TabularPolicy:
        copied = TabularPolicy()
        copied.logits = nn.Parameter(self.logits.detach().clone(), requires_grad=False)
        return copied

    def weights_changed(self) -> None:
        """Nothing is derived from the weights."""


class Countable(Protocol):
    """A policy over these prompts and completions: what the sums below ask of it."""

    def log_probs(self) -> Tensor:
        """Return log π of every action in every state, [prompts, prefixes, actions], differentiable."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]: ...

    def inputs(self, prompt: int, states: Tensor) -> Tensor:
        """Return what a trajectory's `inputs` hold for this policy."""
        ...


def log_probability(log_probs: Tensor, prompt: int, completion: tuple[int, ...]) -> Tensor:
    """Return log π(completion | prompt)."""
    return log_probs[prompt, states(completion), torch.tensor(completion)].sum()


def probabilities(policy: Countable) -> Tensor:
    """Return the probability of every completion, [prompts, completions], differentiable; rows sum to 1."""
    log_probs = policy.log_probs()
    rows = [[log_probability(log_probs, x, y) for y in COMPLETIONS] for x in range(NUM_PROMPTS)]
    return torch.stack([torch.stack(row) for row in rows]).exp()


def likeliest(policy: Countable, prompt: int) -> int:
    """Return the index of the completion that takes the likeliest action each time."""
    completion: tuple[int, ...] = ()
    while tuple(completion) not in set(COMPLETIONS):
        completion += (int(policy.log_probs()[prompt, PREFIXES.index(completion)].argmax()),)
    return COMPLETIONS.index(completion)  # type: ignore[arg-type]


def begins_with(prompt: int, num_tokens: int) -> Tensor:
    """Return which completions begin with the first tokens of a prompt's solution, [completions] bool."""
    return torch.tensor([y[:num_tokens] == SOLUTIONS[prompt][:num_tokens] for y in COMPLETIONS])


def exact_mixed_gradient(policy: Countable, kind: str, num_tokens: int) -> Tensor:
    """Return the gradient of log π(y*_{≤k}) + E[R | y*_{≤k}], k = `num_tokens` of the solution y*, the mean over
    prompts: autograd through sums over the completions that begin so."""
    chance, total = probabilities(policy), torch.zeros((), dtype=torch.float64)
    for x in range(NUM_PROMPTS):
        through = begins_with(x, num_tokens)
        mass = chance[x, through].sum()  # = π(y*_{≤k})
        total = total + mass.log() + (chance[x, through] * returns(kind)[x, through]).sum() / mass
    return flat_gradient(total / NUM_PROMPTS, policy)


def returns(kind: str) -> Tensor:
    """Return R of every completion, [prompts, completions]."""
    totals = [[sum(rewards(kind, x, i)) for i in range(len(COMPLETIONS))] for x in range(NUM_PROMPTS)]
    return torch.tensor(totals, dtype=torch.float64)


def mean_rewards(policy: Countable, kind: str) -> Tensor:
    """Return J of each prompt, Σ_y π(y|x) R(x, y), by summing over every completion, [prompts]."""
    return (probabilities(policy) * returns(kind)).sum(1)


def exact_gradient(policy: Countable, kind: str) -> Tensor:
    """Return ∇J over all parameters, flat; J is the mean over prompts: autograd through the sum, no score function
    anywhere."""
    return flat_gradient(mean_rewards(policy, kind).mean(), policy)


def flat_gradient(objective: Tensor, policy: Countable, retain_graph: bool = False) -> Tensor:
    """Return the gradient of a number over all of a policy's parameters, [parameters]."""
    parameters = list(policy.trainable_parameters().values())
    slopes = torch.autograd.grad(objective, parameters, allow_unused=True, retain_graph=retain_graph)
    found = [torch.zeros_like(p) if s is None else s for p, s in zip(parameters, slopes, strict=True)]
    return torch.cat([slope.flatten() for slope in found])


def scores(policy: Countable) -> Tensor:
    """Return ∇log π(a | s) for every action of every state, [prompts · prefixes · actions, parameters]."""
    every = policy.log_probs().flatten()
    return torch.stack([flat_gradient(one, policy, retain_graph=True) for one in every])


def exact_values(policy: Countable, kind: str) -> Tensor:
    """Return V^π of every state: the mean of the rewards to come, [prompts, prefixes]."""
    chance = probabilities(policy).detach()
    out = torch.zeros(NUM_PROMPTS, len(PREFIXES), dtype=torch.float64)
    for x in range(NUM_PROMPTS):
        for s, prefix in enumerate(PREFIXES):
            n = len(prefix)
            through = [i for i, y in enumerate(COMPLETIONS) if len(y) > n and y[:n] == prefix]
            to_come = sum(chance[x, i] * sum(rewards(kind, x, i)[n:]) for i in through)
            out[x, s] = to_come / chance[x, through].sum()
    return out


def wrong_values() -> Tensor:
    """Return a value table that has nothing to do with the rewards, [prompts, prefixes]."""
    return torch.sin(3.0 * torch.arange(NUM_PROMPTS, dtype=torch.float64)[:, None] + 5.0 * torch.arange(len(PREFIXES)))


def trajectory(policy: Countable, kind: str, prompt: int, index: int, group: int, sample: int) -> Trajectory:
    """Return a completion as the sampler would have recorded it."""
    completion = COMPLETIONS[index]
    at, actions = states(completion), torch.tensor(completion)
    ended = completion[-1] == END
    return Trajectory(
        prompt_uid=prompt,
        sample=sample,
        group=group,
        policy_version=0,
        actions=actions,
        behavior_log_probs=policy.log_probs().detach()[prompt, at, actions],
        entropies=torch.zeros(len(completion), dtype=torch.float64),
        inputs=policy.inputs(prompt, at),
        terminated=ended,
        truncated=not ended,
        rewards=torch.tensor(rewards(kind, prompt, index), dtype=torch.float64),
    )

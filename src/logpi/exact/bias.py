"""What an algorithm's gradient averages to, over every group that can be sampled, against the exact gradient.

Every multiset of G completions goes, with its multinomial probability, through the library's own batch, advantage, loss
and backward. A group is a batch of its own: denominators and batch statistics are those of one prompt's group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from logpi.algorithms import Algorithm, get_algorithm
from logpi.credit import assign_credit
from logpi.exact import tabular
from logpi.exact.tabular import COMPLETIONS, NUM_PROMPTS, Countable, TabularPolicy
from logpi.learner import Learner
from logpi.trajectory import Batch, make_batch

GROUP_SIZE = 4  # with 2 or 3 completions and 0/1 rewards the group's standard deviation is a constant: no bias shows
GROUPS_AT_ONCE = 64
EXACT = 1e-9
NUM_GIVEN = 1  # tokens of a solution, where a row begins completions with them
A_BASELINE = 0.7  # any number will do: a moving baseline is known before the group is sampled


@dataclass(frozen=True)
class Measured:
    """How the mean gradient ĝ of an algorithm relates to the exact ∇J."""

    relative_error: float  # |ĝ − ∇J| / |∇J|
    scale: float  # k = ⟨ĝ, ∇J⟩/|∇J|²: the step length
    off_direction: float  # |ĝ − k∇J| / |k∇J|: the part that is not parallel
    variance: float  # E|g − ĝ|² of one group's gradient, over |ĝ|²


def measure(
    algorithm: Algorithm,
    kind: str = "binary",
    group_size: int = GROUP_SIZE,
    values: str = "wrong",
    *,
    sampler: TabularPolicy | None = None,
    reference: TabularPolicy | None = None,
    exact: Tensor | None = None,
    language: bool = False,
) -> Measured:
    """Enumerate one algorithm. `kind`: the rewards (binary, real, dense); `values`: of a value function, exact or
    wrong; `sampler`: another policy that the samples come from; `reference`: what a KL term is against; `exact`: the
    gradient to compare with, ∇J unless it is given; `language`: a Hugging Face model in the table's place."""
    policy = _policy(algorithm, kind, values, language)
    learner = Learner(policy, algorithm, learning_rate=1.0, micro_batch_tokens=10**9, value_coef=0.0)
    learner.reference = reference or learner.reference
    learner.moving_baseline = A_BASELINE
    given = NUM_GIVEN if algorithm.uses_solutions else 0
    if exact is None:
        exact = tabular.exact_mixed_gradient(policy, kind, given) if given else tabular.exact_gradient(policy, kind)
    scores = tabular.scores(policy)
    mean, square = torch.zeros_like(exact), 0.0
    sampled = _batches(kind, group_size, sampler or _itself(language), algorithm.baseline == "greedy", given)
    for batch, chances in sampled:
        batch = _weighed(learner, algorithm, batch, chances)
        learner.backward(batch)
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters.values()]
        mean -= torch.cat([slope.flatten() for slope in slopes])  # a loss descends
        square += _mean_square(learner, policy, batch, chances, scores)
    scale = float((mean * exact).sum() / (exact * exact).sum())
    norm = float(exact.norm())
    return Measured(
        relative_error=float((mean - exact).norm()) / norm,
        scale=scale,
        off_direction=float((mean / scale - exact).norm()) / norm if scale else math.inf,
        variance=(square - float((mean * mean).sum())) / float((mean * mean).sum()),
    )


def _policy(algorithm: Algorithm, kind: str, values: str, language: bool) -> Any:
    """Return the policy that is measured; a language model's value head is 0 everywhere at its start."""
    if language:
        from logpi.exact.language import TinyLanguageModel

        return TinyLanguageModel(has_values=algorithm.uses_values)
    if not algorithm.uses_values:
        return TabularPolicy()
    exact = values == "exact"
    return TabularPolicy(tabular.exact_values(TabularPolicy(), kind) if exact else tabular.wrong_values())


def verdict(found: list[Measured]) -> str:
    """Return the class of an algorithm from what was measured on several rewards."""
    if all(m.relative_error <= EXACT for m in found):
        return "exact"
    same_scale = max(m.scale for m in found) - min(m.scale for m in found) <= EXACT
    if all(m.off_direction <= EXACT for m in found):
        return "exact up to a constant" if same_scale else "exact direction"
    return "biased"


def prove(algorithms: list[Algorithm], language: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a row for each algorithm and set-up: name, rewards, class and what was measured. The class is of the
    algorithm: what holds in every set-up that it is meant for (a value function's: that its values are wrong)."""
    for algorithm in algorithms:
        settings = [("binary", "wrong"), ("real", "wrong"), ("real", "exact")][: 3 if algorithm.uses_values else 2]
        settings = settings[:2] if language else settings  # the head of a language model is what it is
        with _one_thread():
            found = [measure(algorithm, kind, values=values, language=language) for kind, values in settings]
        name = verdict(found[:2])
        for (kind, values), measured in zip(settings, found, strict=True):
            values = "zero" if language else values
            shown = f"{kind}, {values} V" if algorithm.uses_values else kind
            row = {"name": algorithm.name, "rewards": shown, "group_size": GROUP_SIZE, "class": name}
            yield row | asdict(measured)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the tensors are so small that a second one costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _itself(language: bool) -> Any:
    """Return the policy that samples, where it is the one that learns; one object, so that its groups are kept."""
    return _policy(get_algorithm("reinforce"), "binary", "wrong", language)


@cache
def _batches(kind: str, group_size: int, policy: Countable, greedy: bool, given: int) -> list[tuple[Batch, Tensor]]:
    """Return every group that `policy` can sample as batches, with each group's probability [groups] (prompts equally
    likely). `greedy` adds the likeliest completion as the group's baseline; `given` tokens of each are a solution's."""
    chance = tabular.probabilities(policy).detach()
    chance = chance * torch.stack([tabular.begins_with(x, given) for x in range(NUM_PROMPTS)])
    chance = chance / chance.sum(1, keepdim=True) if given else chance
    places = [(x, i) for x in range(NUM_PROMPTS) for i in range(len(COMPLETIONS))]
    sampled = {(x, i): replace(tabular.trajectory(policy, kind, x, i, 0, 0), num_given=given) for x, i in places}
    likeliest = [tabular.likeliest(policy, x) for x in range(NUM_PROMPTS)]
    groups = [
        (x, m)
        for x in range(NUM_PROMPTS)
        for m in combinations_with_replacement(chance[x].nonzero()[:, 0].tolist(), group_size)
    ]
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(5)).tolist()  # prompts share batches
    out = []
    for start in range(0, len(order), GROUPS_AT_ONCE):
        trajectories, chances = [], []
        for name, place in enumerate(order[start : start + GROUPS_AT_ONCE]):
            x, members = groups[place]
            orders = math.factorial(group_size) // math.prod(math.factorial(n) for n in Counter(members).values())
            chances.append(orders * float(chance[x, list(members)].prod()) / NUM_PROMPTS)
            trajectories += [replace(sampled[x, i], group=name, sample=s) for s, i in enumerate(members)]
            if greedy:
                trajectories.append(replace(sampled[x, likeliest[x]], group=name, is_baseline=True))
        out.append((make_batch(trajectories), torch.tensor(chances, dtype=torch.float64)))
    return out


def _weighed(learner: Learner, algorithm: Algorithm, batch: Batch, chances: Tensor) -> Batch:
    """Fill in advantages and token weights, each group on its own, times the group's probability."""
    batch = learner.annotate(batch, several_updates=False)
    credited = assign_credit(algorithm, batch)
    if algorithm.uses_batch:
        advantages = torch.zeros_like(batch.rewards)
        for rows in _groups(batch):
            found = assign_credit(algorithm, batch.select(rows)).advantages
            assert found is not None
            advantages[rows, : found.shape[1]] = found
        credited = replace(credited, advantages=advantages)
    weights = torch.zeros_like(batch.rewards)
    for rows, chance in zip(_groups(batch), chances, strict=True):
        weights[rows] = algorithm.token_weights(batch.mask[rows]) * chance
    return replace(credited, token_weights=weights)


def _groups(batch: Batch) -> Iterator[Tensor]:
    size = int((batch.group == batch.group[0]).sum())
    return iter(torch.arange(len(batch)).split(size))  # made in order, all of one size


def _mean_square(learner: Learner, policy: Any, batch: Batch, chances: Tensor, scores: Tensor) -> float:
    """Return Σ_groups probability · |gradient of the group|², from what each action's log-prob adds to the loss:
    ∂loss/∂θ = Σ_t c_t ∇log π(a_t|s_t), c_t = ∂loss/∂log π_t."""
    loss = learner.loss(batch)[0]
    slopes = torch.autograd.grad(loss, policy.evaluated)[0][batch.mask]
    lengths = batch.lengths
    at = torch.cat(
        [tabular.states(tuple(a[:n])) for a, n in zip(batch.actions.tolist(), lengths.tolist(), strict=True)]
    )
    state = batch.prompt_uid.repeat_interleave(lengths) * len(tabular.PREFIXES) + at
    group = torch.arange(len(chances)).repeat_interleave(len(batch) // len(chances)).repeat_interleave(lengths)
    action = state * tabular.VOCABULARY + batch.actions[batch.mask]
    coefficients = torch.zeros(len(chances), len(scores), dtype=torch.float64)
    coefficients.index_put_((group, action), slopes, accumulate=True)
    squares = (coefficients @ scores).pow(2).sum(1)
    return float((squares / chances).sum())  # the weights hold the probability once

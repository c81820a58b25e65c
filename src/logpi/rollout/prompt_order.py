"""Which prompts a step takes: epoch after epoch, or those more often whose rewards differ most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from logpi.errors import InputError
from logpi.randomness import Stream, permutation, uniforms
from logpi.trajectory import Trajectory

NOT_SEEN = -1.0


@lru_cache(maxsize=2)
def order_of_epoch(seed: int, epoch: int, size: int) -> Sequence[int]:
    """Return the order in which problems are trained in an epoch: a pure function of seed and epoch."""
    return permutation(seed, Stream.DATA_ORDER, size, epoch).tolist()


def places_of_step(seed: int, step: int, count: int, size: int) -> list[int]:
    """Return which `count` of `size` problems a step takes: the epochs' orders one after the other, cut into steps."""
    positions = (divmod(position, size) for position in range(step * count, (step + 1) * count))
    return [order_of_epoch(seed, epoch, size)[index] for epoch, index in positions]


class PromptOrder:
    """The prompts of each step, and what each counts.

    Without `upsampling` every prompt comes once an epoch and counts 1. With it, u, they are drawn with replacement from
    q(x) = (1 − u)/n + u·s_x/Σs, s_x the standard deviation of x's rewards when it last came (the mean of the others'
    until then), and count (1/n)/q(x) ≤ 1/(1 − u): so the mean gradient is that of uniform prompts.
    """

    def __init__(self, uids: Sequence[int], seed: int, count: int, upsampling: float = 0.0):
        self.uids, self.seed, self.count, self.upsampling = uids, seed, count, upsampling
        self.place = {uid: place for place, uid in enumerate(uids)}
        self.spreads = np.full(len(uids), NOT_SEEN)  # of each prompt's rewards
        self.past: list[list[int]] = []  # the places that each step drew

    def plan(self, step: int) -> list[int]:
        """Return the uids of a step's prompts: of this step, or of one that `follow` has seen."""
        if not self.upsampling:
            places = places_of_step(self.seed, step, self.count, len(self.uids))
        else:
            places = self.past[step] if step < len(self.past) else self._draw(step)
        return [self.uids[place] for place in places]

    def weight(self, uid: int) -> float:
        """Return what a prompt of the present step counts."""
        return float(1 / (len(self.uids) * self.chances()[self.place[uid]])) if self.upsampling else 1.0

    def chances(self) -> np.ndarray:
        """Return q, [prompts]."""
        seen = self.spreads != NOT_SEEN
        spreads = np.where(seen, self.spreads, self.spreads[seen].mean() if seen.any() else 1.0)
        uniform = np.full(len(spreads), 1 / len(spreads))
        return (1 - self.upsampling) * uniform + self.upsampling * (
            spreads / spreads.sum() if spreads.any() else uniform
        )

    def _draw(self, step: int) -> list[int]:
        numbers = uniforms(self.seed, Stream.UPSAMPLING, step, 0, 0, np.arange(self.count))
        edges = np.cumsum(self.chances())
        return np.searchsorted(edges / edges[-1], numbers, side="right").tolist()

    def follow(self, step: int, trajectories: Iterable[Trajectory]) -> None:
        """Take note of a step's rewards."""
        if not self.upsampling:
            return
        self.past.append([self.place[uid] for uid in self.plan(step)])
        totals: dict[int, list[float]] = {}
        for t in trajectories:
            if t.rewards is not None and not t.is_baseline:
                totals.setdefault(t.prompt_uid, []).append(float(t.rewards.sum()))
        for uid, values in totals.items():
            self.spreads[self.place[uid]] = np.std(values)

    def state(self) -> dict[str, Tensor]:
        """Return what the next plan depends on; empty without upsampling."""
        if not self.upsampling:
            return {}
        past = torch.tensor(self.past, dtype=torch.int64).reshape(-1, self.count)
        return {"order/spreads": torch.from_numpy(self.spreads.copy()), "order/past": past}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned. Raises InputError for a checkpoint of a run without upsampling."""
        if not self.upsampling:
            return
        if "order/past" not in tensors:
            raise InputError("rollout.upsampling: the checkpoint is of a run without it; leave it out, or begin anew")
        self.spreads = tensors["order/spreads"].numpy().copy()
        self.past = tensors["order/past"].tolist()

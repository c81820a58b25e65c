"""Dropout while imitating: hidden units are left out of the gradient's own forward, and of no other.

Data that is read several times is learnt by heart, and a reward then teaches little on it. What is sampled or scored is
never dropped: π stays one policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from logpi.randomness import Stream, random_bytes

LEVELS = 256  # a byte decides about a unit, so a rate is one of so many


@dataclass(frozen=True)
class Dropout:
    """Each hidden unit is 0 with probability `rate`, and 1/(1 − rate) times itself otherwise: the same in expectation.

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting"; where: on embeddings
    and on what each attention and MLP add (Vaswani et al. 2017, section 5.4). A draw is keyed by seed, step, the
    sequence's tokens and the token's place in it: micro-batches change none.
    """

    rate: float  # taken to the nearest 256th
    seed: int
    step: int = 0

    def of(
        self, sequences: Sequence[Tensor], counts: Sequence[int], shape: tuple[int, int, int]
    ) -> Callable[[Tensor, int], Tensor]:
        """Return (x [places, width], site) ↦ x without what is left out, the rest scaled, for (places, sites, width).
        Places are the last `counts` tokens of each sequence, one sequence after the other, and padding, which stays."""
        limit = round(LEVELS * self.rate)
        size = shape[1] * shape[2]
        drawn = torch.cat([self._bytes(*both, size) for both in zip(sequences, counts, strict=True)])
        left_out = pad(drawn < limit, (0, 0, 0, shape[0] - len(drawn))).view(shape)

        def drop(x: Tensor, site: int) -> Tensor:
            return x.masked_fill(left_out[:, site], 0) * (LEVELS / (LEVELS - limit))

        return drop

    def _bytes(self, sequence: Tensor, count: int, size: int) -> Tensor:
        """Return what decides about a sequence's last tokens, [count, size]."""
        name = int.from_bytes(hashlib.blake2b(sequence.numpy().tobytes(), digest_size=8).digest(), "little")
        drawn = random_bytes(self.seed, Stream.DROPOUT, self.step, name, count * size)
        return torch.from_numpy(drawn).view(count, size)

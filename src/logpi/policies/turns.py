"""Episodes of several turns as a language model's forward reads them: one sequence of everybody's tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.trajectory import OWN, num_shared


def unrolled(
    actions: Tensor, mask: Tensor, inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
    """Return of each row its prompt, what comes after it up to the last action, and where in that each action stands.

    `inputs` holds prompts, with OWN where an action stands; actions [batch, time] that are left come last. Without any
    OWN, a completion of a prompt, these are the inputs, the actions and 0 … time − 1.
    """
    prompts, sequences, places = [], [], []
    for row, told, length in zip(actions, inputs, mask.sum(1).tolist(), strict=True):
        start = num_shared(told)
        is_own = told[start:] == OWN
        rest = row[int(is_own.sum()) : length]
        sequence = torch.cat([told[start:], rest])
        places.append(torch.cat([is_own.nonzero()[:, 0], len(told) - start + torch.arange(len(rest))]))
        sequence[places[-1]] = row[:length]
        prompts.append(told[:start])
        sequences.append(sequence)
    return tuple(prompts), sequences, places

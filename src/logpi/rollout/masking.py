"""Masked tokens: which of a sentence's tokens are hidden, and what stands in their place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from logpi.randomness import Stream, uniforms

CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.9  # of all tokens; of the chosen ones, cumulated


def masked(tokens: Tensor, mask_id: int, vocab_size: int, *, seed: int, step: int, uid: int) -> tuple[Tensor, Tensor]:
    """Return (tokens as the network sees them, which ones it is asked for), both [time].

    15 % of the tokens are chosen, at least one; 80 % of these become the mask, 10 % another token of the vocabulary,
    drawn uniformly, 10 % stay (Devlin et al. 2019, section 3.1). The draws for a position are keyed by (seed, step,
    uid, draw, position).
    """
    draws = uniforms(seed, Stream.MASKING, step, uid, np.arange(3)[:, None], np.arange(len(tokens)))
    is_chosen, fate, other = draws[0] < CHOSEN, draws[1], (draws[2] * vocab_size).astype(np.int64)
    is_chosen[draws[0].argmin()] = True
    seen = np.where(fate < MASKED, mask_id, np.where(fate < REPLACED, other, tokens.numpy()))
    return torch.from_numpy(np.where(is_chosen, seen, tokens.numpy())), torch.from_numpy(is_chosen)

"""Gradients that are added to a weight's own in place.

Through autograd each use of a weight, and each micro-batch, would make another tensor of its size, convert it, add it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_of(weight: Tensor) -> Tensor:
    """Return the weight's gradient so far, to be added to: zeros, where nothing has been."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add_gradient(weight: Tensor, found: Tensor) -> None:
    """Add what was found, in any dtype, to the weight's gradient."""
    if weight.grad is None:
        weight.grad = found.to(weight.dtype)
    else:
        weight.grad += found

"""AdamW, torch's own."""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), in torch's implementation.

    torch wraps these methods in calls of its compiler that ask it to leave them alone. Nothing is compiled here, and to
    import the compiler takes as long as torch itself, so they are taken as they are inside.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

"""Hidden states to log-probs: one chunked function for sampler and learner alike.

Chunks have a fixed number of rows, a multiple of 8, so a row's bits don't depend on how many rows come with it, and
tokens × vocabulary is never held at once, forward or backward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROW_MULTIPLE = 8
CHUNK_ROWS = 128


def pad_rows(tensor: Tensor, multiple: int = ROW_MULTIPLE, dim: int = 0) -> Tensor:
    """Append zero rows along `dim` up to a multiple: matrix products then take the same kernel for any row count."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    widths = [0, 0] * (tensor.ndim - dim)
    widths[-1] = missing
    return F.pad(tensor, widths)


def action_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Return logits / temperature [rows, vocabulary] in fp32, or float64 when the product is; rows a multiple of 8."""
    logits = F.linear(hidden.to(weight.dtype), weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


def distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Return log-probs over the whole vocabulary for few rows (a decoding step), [rows, vocabulary].

    Not log_softmax: on a CPU it adds up the vocabulary in one float32 sum, 1e-5 off; logsumexp adds in pairs.
    """
    logits = action_logits(pad_rows(hidden), weight, bias, temperature)
    return (logits - torch.logsumexp(logits, -1, keepdim=True))[: len(hidden)]


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden Wᵀ + b)[action], recomputing each chunk's logits in backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, actions, temperature, dtype):
        product_weight = weight.to(dtype)
        product_bias = None if bias is None else bias.to(dtype)
        log_probs, entropies = [], []
        for rows, chosen in zip(hidden.split(CHUNK_ROWS), actions.split(CHUNK_ROWS), strict=True):
            all_log_probs = distribution(rows, product_weight, product_bias, temperature)
            log_probs.append(all_log_probs.gather(1, chosen[:, None])[:, 0])
            entropies.append(-(all_log_probs.exp() * all_log_probs).sum(1))
        ctx.save_for_backward(hidden, product_weight, product_bias, actions)
        ctx.temperature, ctx.has_bias = temperature, bias is not None
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(log_probs), entropy

    @staticmethod
    def backward(ctx, grad_log_probs, _grad_entropies):
        hidden, weight, bias, actions = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        # fp32 accumulators, whatever the products' precision
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if want_weight else None
        grad_bias = weight.new_zeros(weight.shape[0], dtype=wide) if want_bias and ctx.has_bias else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scale = grad_log_probs[rows] / ctx.temperature
            probabilities = distribution(hidden[rows], weight, bias, ctx.temperature).exp_()
            grad_logits = probabilities.mul_(-scale[:, None])
            grad_logits.scatter_add_(1, actions[rows][:, None], scale[:, None].to(grad_logits.dtype))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows].to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def token_log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (log π(action | hidden), entropy of π(· | hidden)), [rows] each.

    hidden [rows, width], weight [vocabulary, width], actions [rows]; `dtype` is the product's. log-probs are
    differentiable in hidden, weight and bias; entropies are not. Temperature divides the logits, as in sampling.
    """
    return _TokenLogProbs.apply(hidden, weight, bias, actions, temperature, dtype)

"""Hidden states to log-probs: one chunked function for sampler and learner alike.

Chunks have a fixed number of rows, a multiple of 8, so a row's bits don't depend on how many rows come with it, and
tokens × vocabulary is never held at once, forward or backward.

Temperature, top-k, top-p and min-p change the policy, in this order: that of transformers (vLLM cuts by min-p first). A
token as likely as the last one kept is kept too, by top-k as in transformers, by top-p as well: what is kept depends on
the row's logits alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from logpi.policies.base import kl_exact

ROW_MULTIPLE = 8
CHUNK_ROWS = 128
LOG_ZERO = -1e4  # its exponential is exactly 0, and so is 0 · log 0


@dataclass(frozen=True)
class Transform:
    """What turns a model's logits into its policy: logits / temperature, cut by top-k, top-p, min-p, renormalised.

    top_k 0, top_p 1 and min_p 0 are off. top_p keeps the likeliest tokens until their mass, among those that top_k
    left, reaches it; min_p keeps tokens of at least min_p times the likeliest one's probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether tokens can have probability 0."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0


PLAIN = Transform()  # softmax(logits)


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


def lowest_kept(logits: Tensor, transform: Transform) -> Tensor:
    """Return the smallest logit that top-k, then top-p, then min-p keep in each row, [rows, 1]; -inf: all are kept."""
    lowest = logits.new_full((len(logits), 1), -torch.inf)
    if transform.top_k:
        lowest = logits.topk(min(transform.top_k, logits.shape[1])).values[:, -1:]
    if transform.top_p < 1:
        left = logits.masked_fill(logits < lowest, -torch.inf) if transform.top_k else logits
        lowest = torch.maximum(lowest, _lowest_of_mass(left, transform.top_p))
    if transform.min_p:
        lowest = torch.maximum(lowest, logits.amax(-1, keepdim=True) + math.log(transform.min_p))
    return lowest


def _lowest_of_mass(logits: Tensor, mass: float) -> Tensor:
    """Return the logit at which the mass of the likeliest tokens reaches `mass`, [rows, 1].

    Sorting a whole vocabulary costs five times the head's product, and few tokens hold most of the mass: sort more of
    them until it suffices. Sums run from the likeliest on, so how many are sorted changes no bit. Threads share the sum
    of a row that is alone, in another order: hence the padding.
    """
    total = pad_rows(logits).logsumexp(-1, keepdim=True)[: len(logits)]
    size, vocabulary = 512, logits.shape[1]
    while True:
        likeliest = logits.topk(min(size, vocabulary)).values
        sums = (likeliest - total).exp().cumsum(-1)
        if size >= vocabulary or bool((sums[:, -1] >= mass).all()):
            index = (sums < mass).sum(-1, keepdim=True).clamp(max=sums.shape[1] - 1)
            return likeliest.gather(1, index)
        size *= 8


def log_policy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    actions: Tensor | None = None,
    lowest: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (log π over the whole vocabulary [rows, vocabulary], the smallest logit kept [rows, 1]), few rows at once.

    log π = logits/T − log Σ_{kept} exp(logits/T) for tokens that are kept, -inf for others; None where none is cut.
    `actions` [rows] were drawn: each is kept, with all that are likelier, should rounding put it beyond the edge.
    `lowest` is what an earlier call on the same rows returned: the same tokens are kept again. Not log_softmax: on a
    CPU it adds up the vocabulary in one float32 sum, 1e-5 off; logsumexp adds in pairs.
    """
    num_rows = len(hidden)
    logits = action_logits(pad_rows(hidden), weight, bias, transform.temperature)
    if transform.cuts:
        if lowest is None:
            lowest = lowest_kept(logits[:num_rows], transform)
            if actions is not None:
                lowest = torch.minimum(lowest, logits[:num_rows].gather(1, actions[:, None]))
        logits.masked_fill_(logits < pad_rows(lowest), -torch.inf)
    return (logits - torch.logsumexp(logits, -1, keepdim=True))[:num_rows], lowest


def distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform) -> Tensor:
    """Return log π over the whole vocabulary for few rows (a decoding step), [rows, vocabulary]."""
    return log_policy(hidden, weight, bias, transform)[0]


def entropy(log_probs: Tensor) -> Tensor:
    """Return H = −Σ p log p over the last axis, in nats, without gradient; a probability of 0 adds 0."""
    return -log_probs.exp().mul_(log_probs.clamp(min=LOG_ZERO)).sum(-1)


class _TokenLogProbs(torch.autograd.Function):
    """(log π(action), H(π), KL(π‖π_ref)) of π = softmax((hidden Wᵀ + b) / T) over the tokens kept, recomputing each
    chunk's logits in backward. What is kept counts as a constant: exact almost everywhere.

    ∂ log π(a)/∂logit_v = (1{v = a} − p_v) / T,  ∂H/∂logit_v = −p_v (log p_v + H) / T,
    ∂KL/∂logit_v = p_v (log p_v − log q_v − KL) / T, q the reference's probabilities.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, actions, transform, dtype, reference):
        product_weight = weight.to(dtype)
        product_bias = None if bias is None else bias.to(dtype)
        against = [] if reference is None else [reference[0], *(x if x is None else x.to(dtype) for x in reference[1:])]
        log_probs, entropies, kl, lowest = [], [], [], []
        for start in range(0, max(1, len(hidden)), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            chosen = actions[rows]
            all_log_probs, edge = log_policy(hidden[rows], product_weight, product_bias, transform, actions=chosen)
            log_probs.append(all_log_probs.gather(1, chosen[:, None])[:, 0])
            entropies.append(entropy(all_log_probs))
            lowest += [] if edge is None else [edge]
            kl += [kl_exact(all_log_probs, _log_reference(against, rows, transform))] if against else []
        out = torch.cat(log_probs), torch.cat(entropies), torch.cat(kl) if kl else None
        edges = torch.cat(lowest) if lowest else None
        ctx.save_for_backward(hidden, product_weight, product_bias, actions, edges, *out[1:], *against)
        ctx.transform, ctx.has_bias = transform, bias is not None
        ctx.set_materialize_grads(False)  # an entropy that nobody asks the gradient of costs none
        return out

    @staticmethod
    def backward(ctx, grad_log_probs, grad_entropies, grad_kl):
        hidden, weight, bias, actions, lowest, entropies, kl, *against = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropies)
        # fp32 accumulators, whatever the products' precision
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if want_weight else None
        grad_bias = weight.new_zeros(weight.shape[0], dtype=wide) if want_bias and ctx.has_bias else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scale = (grad_log_probs[rows] / ctx.transform.temperature)[:, None]
            kept = None if lowest is None else lowest[rows]
            all_log_probs, _ = log_policy(hidden[rows], weight, bias, ctx.transform, lowest=kept)
            slopes = -scale
            if grad_entropies is not None:
                entropy_scale = (grad_entropies[rows] / ctx.transform.temperature)[:, None]
                slopes = all_log_probs.clamp(min=LOG_ZERO).add_(entropies[rows, None]).mul_(-entropy_scale).add_(slopes)
            if grad_kl is not None:
                kl_scale = (grad_kl[rows] / ctx.transform.temperature)[:, None]
                log_ratios = all_log_probs - _log_reference(against, rows, ctx.transform)
                slopes = log_ratios.sub_(kl[rows, None]).mul_(kl_scale).add_(slopes)
            grad_logits = all_log_probs.exp_().mul_(slopes)
            grad_logits.scatter_add_(1, actions[rows][:, None], scale.to(grad_logits.dtype))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows].to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _log_reference(against: list, rows: slice, transform: Transform) -> Tensor:
    """Return log π_ref over the whole vocabulary for one chunk of its (hidden, weight, bias)."""
    hidden, weight, bias = against
    return log_policy(hidden[rows], weight, bias, transform)[0]


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    actions: Tensor,
    transform: Transform,
    dtype: torch.dtype,
    reference: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (log π(action | hidden), entropy of π(· | hidden), KL(π‖π_ref)), [rows] each, differentiable in hidden,
    weight, bias.

    hidden [rows, width], weight [vocabulary, width], actions [rows]; `dtype` is the product's. The policy is the one
    that `transform` makes of the logits, as in sampling. `reference`: hidden, weight, bias of another network at the
    same rows, under the same transform, taken as constants; the KL is None without it, and infinite or NaN where tokens
    are cut.
    """
    return _TokenLogProbs.apply(hidden, weight, bias, actions, transform, dtype, reference)

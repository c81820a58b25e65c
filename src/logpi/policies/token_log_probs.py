"""Hidden states to log-probs: one chunked function for sampler and learner alike.

Chunks have rows in multiples of 8, so a row's bits don't depend on how many rows come with it, and of tokens ×
vocabulary no more is held at once than CHUNK_BYTES: the last chunk's logits from forward to backward, which computes
those of the others again.

Temperature, top-k, top-p and min-p change the policy, in this order: that of transformers (vLLM cuts by min-p first). A
token as likely as the last one kept is kept too, by top-k as in transformers, by top-p as well: what is kept depends on
the row's logits alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from logpi.policies.base import kl_exact
from logpi.policies.gradients import gradient_of

ROW_MULTIPLE = 8
CHUNK_ROWS = 2048
CHUNK_BYTES = 2**28  # of a chunk's logits
SLICE_ROWS, SLICE_LOGITS = 16, 2**20  # they stay in the processor's cache from one pass to the next
PIECE_ROWS = 4096  # of the head's gradient
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


def next_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the head's product [rows, vocabulary] in the weight's dtype; rows a multiple of 8."""
    return F.linear(pad_rows(hidden).to(weight.dtype), weight, bias)


@dataclass(frozen=True)
class Head:
    """x ↦ x Wᵀ + b, the layer that turns states into logits, in the dtype of products."""

    weight: Tensor  # [vocabulary, width]
    bias: Tensor | None
    product: Callable[[Tensor], Tensor] | None = None  # the same, where the weights are laid out for the processor
    adds_in_place: bool = False  # the gradient of the learner's weight: to what is there, not through autograd

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of states [rows, width], [rows padded to a multiple of 8, vocabulary]."""
        if self.product is None:
            return next_logits(hidden, self.weight, self.bias)
        return self.product(pad_rows(hidden).to(self.weight.dtype))

    def chunks(self, num_rows: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the rows whose logits are held at once; at least one pair."""
        fit = CHUNK_BYTES // (self.weight.shape[0] * self.weight.element_size()) // SLICE_ROWS * SLICE_ROWS
        size = min(CHUNK_ROWS, max(SLICE_ROWS, fit))
        return [(start, min(start + size, num_rows)) for start in range(0, max(1, num_rows), size)]


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


@dataclass(frozen=True)
class Softmax:
    """π of few rows: π = weights / total, log π = shifted − log total. Not log_softmax: on a CPU it adds up the
    vocabulary in one float32 sum, 1e-5 off; `sum` adds in pairs."""

    shifted: Tensor  # [rows, vocabulary], (logits − the row's largest) / temperature; -inf: cut
    weights: Tensor  # [rows, vocabulary], exp(shifted)
    largest: Tensor  # [rows, 1], the logit / temperature that `shifted` lacks
    total: Tensor  # [rows, 1], of the weights

    def log_probs(self, actions: Tensor | None = None) -> Tensor:
        """Return log π of one action a row, [rows]; of all of them, [rows, vocabulary]."""
        if actions is None:
            return self.shifted - self.total.log()
        return (self.shifted.gather(1, actions[:, None]) - self.total.log())[:, 0]

    def entropy(self) -> Tensor:
        """Return H(π) = log total − Σ π·shifted, [rows], in nats; a probability of 0 adds 0."""
        surprise = self.shifted.clamp(min=LOG_ZERO).mul_(self.weights).sum(-1, keepdim=True) / self.total
        return (self.total.log() - surprise)[:, 0]


def softmax(
    logits: Tensor,
    transform: Transform,
    *,
    actions: Tensor | None = None,
    lowest: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Softmax, Tensor | None]:
    """Return (π of few rows, the smallest logit kept [rows, 1]; None where none is cut), logits [rows, vocabulary] in
    any dtype, computed in fp32, or float64 when they are.

    `actions` [rows] were drawn: each is kept, with all that are likelier, should rounding put it beyond the edge.
    `lowest` is what an earlier call on the same rows returned: the same tokens are kept again. `known` are that call's
    `largest` and `total`.
    """
    num_rows = len(logits)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = pad_rows(logits).to(wide, copy=True)  # threads share the sum of a row that is alone, in another order
    if transform.temperature != 1.0:
        logits /= transform.temperature
    if transform.cuts:
        if lowest is None:
            lowest = lowest_kept(logits[:num_rows], transform)
            if actions is not None:
                lowest = torch.minimum(lowest, logits[:num_rows].gather(1, actions[:, None]))
        logits.masked_fill_(logits < pad_rows(lowest), -torch.inf)
    largest = logits.amax(-1, keepdim=True) if known is None else pad_rows(known[0])
    shifted = logits.sub_(largest)
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True) if known is None else known[1]
    return Softmax(*(x[:num_rows] for x in (shifted, weights, largest, total))), lowest


def slices(start: int, stop: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Yield (place in the chunk, place among all rows) of few rows of the chunk from `start` to `stop`: as many as stay
    in the processor's cache from one pass over the vocabulary to the next, at least SLICE_ROWS."""
    size = max(SLICE_ROWS, SLICE_LOGITS // vocabulary // ROW_MULTIPLE * ROW_MULTIPLE)
    for first in range(start, max(stop, 1), size):
        last = min(first + size, stop)
        yield slice(first - start, last - start), slice(first, last)


class _TokenLogProbs(torch.autograd.Function):
    """(log π(action), H(π), KL(π‖π_ref)) of π = softmax((hidden Wᵀ + b) / T) over the tokens kept. What is kept counts
    as a constant: exact almost everywhere.

    ∂ log π(a)/∂logit_v = (1{v = a} − p_v) / T,  ∂H/∂logit_v = −p_v (log p_v + H) / T,
    ∂KL/∂logit_v = p_v (log p_v − log q_v − KL) / T, q the reference's probabilities.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, actions, transform, head, with_entropy, reference):
        against = None
        if reference is not None:
            against = reference[0], head_of(reference[1], reference[2], head.weight.dtype)
        log_probs, entropies, kl, lowest, sums = [], [], [], [], []
        for start, stop in head.chunks(len(hidden)):
            logits = head.logits(hidden[start:stop])
            reference_logits = None if against is None else against[1].logits(against[0][start:stop])
            for few, place in slices(start, stop, len(head.weight)):
                found, edge = softmax(logits[few], transform, actions=actions[place])
                log_probs.append(found.log_probs(actions[place]))
                sums.append(torch.cat([found.largest, found.total], -1))
                entropies += [found.entropy()] if with_entropy else []
                lowest += [] if edge is None else [edge]
                if reference_logits is not None:
                    kl.append(kl_exact(found.log_probs(), softmax(reference_logits[few], transform)[0].log_probs()))
        out = torch.cat(log_probs), *(torch.cat(parts) if parts else None for parts in (entropies, kl))
        ctx.save_for_backward(hidden, actions, torch.cat(sums), torch.cat(lowest) if lowest else None, *out[1:])
        ctx.transform, ctx.head, ctx.against, ctx.weight = transform, head, against, weight
        ctx.kept = logits if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)  # an entropy that nobody asks the gradient of costs none
        return out

    @staticmethod
    def backward(ctx, grad_log_probs, grad_entropies, grad_kl):
        hidden, actions, sums, lowest, entropies, kl = ctx.saved_tensors
        head, temperature = ctx.head, ctx.transform.temperature
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        if grad_log_probs is None:
            grad_log_probs = sums.new_zeros(len(hidden))
        # fp32 accumulators, whatever the products' precision
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = None
        if want_weight:
            in_place = head.adds_in_place
            grad_weight = gradient_of(ctx.weight) if in_place else torch.zeros_like(ctx.weight, dtype=wide)
        grad_bias = sums.new_zeros(len(head.weight), dtype=wide) if want_bias else None
        for start, stop in reversed(head.chunks(len(hidden))):
            logits, ctx.kept = head.logits(hidden[start:stop]) if ctx.kept is None else ctx.kept, None
            reference_logits = None if grad_kl is None else ctx.against[1].logits(ctx.against[0][start:stop])
            for few, place in slices(start, stop, len(head.weight)):  # logits become their own gradients
                known = (sums[place, :1], sums[place, 1:])
                edge = None if lowest is None else lowest[place]
                found, _ = softmax(logits[few], ctx.transform, lowest=edge, known=known)
                scale = (grad_log_probs[place] / temperature)[:, None]
                slopes = -scale
                if grad_entropies is not None:
                    entropy_scale = (grad_entropies[place] / temperature)[:, None]
                    surprise = found.log_probs().clamp_(min=LOG_ZERO).add_(entropies[place, None])
                    slopes = surprise.mul_(-entropy_scale).add_(slopes)
                if reference_logits is not None and grad_kl is not None:
                    kl_scale = (grad_kl[place] / temperature)[:, None]
                    log_ratios = found.log_probs() - softmax(reference_logits[few], ctx.transform)[0].log_probs()
                    slopes = log_ratios.sub_(kl[place, None]).mul_(kl_scale).add_(slopes)
                own = found.weights.mul_(slopes / found.total)
                logits[few] = own.scatter_add_(1, actions[place][:, None], scale.to(own.dtype))
            grad_logits = logits[: stop - start]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=wide)
            if grad_hidden is not None:
                grad_hidden[start:stop] = (grad_logits @ head.weight).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, hidden[start:stop].to(head.weight.dtype))
        return grad_hidden, None if head.adds_in_place else grad_weight, grad_bias, None, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, piece by piece: a whole product in another dtype costs more to convert than to compute."""
    for start in range(0, len(total), PIECE_ROWS):
        piece = slice(start, start + PIECE_ROWS)
        total[piece] += a[piece] @ b


def head_of(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Head:
    """Return the head of a layer's weight and bias, which are taken as constants, in the dtype of products."""
    return Head(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    actions: Tensor,
    transform: Transform,
    dtype: torch.dtype,
    reference: tuple[Tensor, Tensor, Tensor | None] | None = None,
    head: Head | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return (log π(action | hidden), entropy of π(· | hidden), KL(π‖π_ref)), [rows] each, differentiable in hidden,
    weight, bias; the last two are None where they are not asked for.

    hidden [rows, width], weight [vocabulary, width], actions [rows]; `dtype` is the product's. The policy is the one
    that `transform` makes of the logits, as in sampling. `reference`: hidden, weight, bias of another network at the
    same rows, under the same transform, taken as constants; the KL is infinite or NaN where tokens are cut. `head` is
    the weight and bias in `dtype`, where they are at hand.
    """
    head = head_of(weight, bias, dtype) if head is None else head
    return _TokenLogProbs.apply(hidden, weight, bias, actions, transform, head, with_entropy, reference)

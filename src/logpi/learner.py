"""One update: log-probs, loss, backward, clip, optimiser step. Only the learner writes weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from logpi.algorithms import Algorithm
from logpi.batching import micro_batches
from logpi.device import is_out_of_memory
from logpi.errors import InputError, OutOfMemoryError
from logpi.losses import squared_error
from logpi.masking import masked_sum
from logpi.optimizer import AdamW
from logpi.policies.base import Policy, PolicyOutput, Reference, scatter
from logpi.policies.dropout import Dropout
from logpi.trajectory import Batch

T = TypeVar("T")
BASELINE_RATE = 0.1  # of a moving baseline: b ← b + 0.1 (mean reward − b)


@dataclass(frozen=True)
class Gradient:
    """What one backward pass left behind: the losses, and how far samples and learner agree."""

    loss: float
    num_trajectories: int
    num_trained: int  # of them, the ones whose gradient is not exactly zero
    log_ratio_max: float  # max |log π − log π when it sampled| over trained actions; 0.0 on the first update: same bits
    log_ratio_mean: float
    clip_fraction: float
    kl: float = 0.0
    value_loss: float = 0.0
    problem: str | None = None  # why it is not to be used: a loss that is not finite


@dataclass(frozen=True)
class Update:
    """What one optimiser step did, or why it did nothing."""

    gradient: Gradient
    norm: float  # of the gradient, before clipping
    skipped: str | None = None  # a loss or gradient is not finite: weights and optimiser are as they were


class Learner:
    """Turns batches into weight updates."""

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        *,
        learning_rate: float,
        schedule: Callable[[int], float] = lambda step: 1.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        adam_epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        micro_batch_tokens: int = 2048,
        value_coef: float = 0.5,
        dropout: Dropout | None = None,
    ):
        self.policy, self.algorithm, self.dropout = policy, algorithm, dropout
        self.learning_rate, self.schedule = learning_rate, schedule
        self.max_grad_norm, self.micro_batch_tokens, self.value_coef = max_grad_norm, micro_batch_tokens, value_coef
        self.parameters = policy.trainable_parameters()
        self.optimizer = AdamW(
            list(self.parameters.values()),
            lr=learning_rate,
            betas=adam_betas,
            eps=adam_epsilon,
            weight_decay=weight_decay,
            fused=True,
        )
        self.reference = policy.frozen_copy() if algorithm.beta else None
        self.num_updates = 0
        self.moving_baseline = 0.0  # of earlier steps' rewards, where the algorithm has one

    # --- before the update -------------------------------------------------------------------------------------

    @torch.no_grad()
    def annotate(self, batch: Batch, *, several_updates: bool) -> Batch:
        """Fill in what the algorithm reads besides rewards: values, reference and old log-probs; nothing it doesn't."""
        return self._within_memory(lambda: self._annotate(batch, several_updates))

    def follow(self, batch: Batch) -> None:
        """Move the moving baseline towards this batch's mean reward; after its advantages are taken."""
        if self.algorithm.baseline == "moving":
            self.moving_baseline += BASELINE_RATE * (float(batch.rewards.sum(1).mean()) - self.moving_baseline)

    def _annotate(self, batch: Batch, several_updates: bool) -> Batch:
        uses_values = self.algorithm.uses_values
        if self.algorithm.baseline == "moving":
            batch = replace(batch, values=batch.mask.to(batch.rewards.dtype) * self.moving_baseline)
        several_updates |= self.algorithm.reads_ratios
        exact = self.algorithm.kl_is_exact
        if self.reference is not None:
            out = self._evaluate_all(self.reference, batch, with_states=exact)
            batch = replace(batch, reference_log_probs=out.log_probs, reference_states=out.states)
        if uses_values or several_updates or (exact and self.algorithm.kl_in_reward):
            out = self._evaluate_all(self.policy, batch)
            batch = replace(batch, kl_exact=out.kl_exact)
            if uses_values:
                batch = replace(batch, values=out.values, final_values=out.final_values)
            if several_updates:
                batch = replace(batch, old_log_probs=out.log_probs)
        return batch

    def _evaluate(self, policy: Policy, batch: Batch, **options: Any) -> PolicyOutput:
        """Evaluate one micro-batch; with the exact KL where the reference's states are there."""
        states = batch.reference_states
        against = None if states is None else Reference(self.reference, states)
        entropy = bool(self.algorithm.entropy_coef)
        return policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs, against, entropy, **options)

    def _evaluate_all(self, policy: Policy, batch: Batch, *, with_states: bool = False) -> PolicyOutput:
        """Evaluate in micro-batches and put the rows back in order; `with_states`: [batch, time, width] here."""
        fields: dict[str, Tensor] = {}
        for rows in micro_batches(batch, self.micro_batch_tokens):
            part = batch.select(rows)
            out = self._evaluate(policy, part)
            states = scatter(out.states, part.mask) if with_states and out.states is not None else None
            for name, value in vars(replace(out, states=states)).items():
                if value is not None:
                    shape = (len(batch), *batch.actions.shape[1:], *value.shape[2:])[: value.ndim]
                    whole = fields.setdefault(name, value.new_zeros(shape))
                    if value.ndim >= 2:
                        whole[rows, : value.shape[1]] = value
                    else:
                        whole[rows] = value
        return PolicyOutput(**fields)

    # --- loss and gradient -------------------------------------------------------------------------------------

    def backward(self, batch: Batch) -> Gradient:
        """Accumulate the gradient of Σ_tokens token_weights·loss over the batch, in micro-batches that add up.

        Rows whose gradient is exactly zero (all advantages 0, no KL and no value term) are left out: same gradient.
        Where memory does not suffice, the same batch is done again in smaller micro-batches: same gradient but for
        rounding. Raises OutOfMemoryError when that can't go on.
        """
        return self._within_memory(lambda: self._accumulate(batch))

    def _accumulate(self, batch: Batch) -> Gradient:
        assert batch.advantages is not None and batch.token_weights is not None
        self.optimizer.zero_grad(set_to_none=True)
        trained = torch.arange(len(batch))
        if not (self.algorithm.kl_in_loss or self.algorithm.uses_values or self.algorithm.entropy_coef):
            trained = (batch.advantages != 0).any(1).nonzero()[:, 0]
        totals = {"loss": 0.0, "kl": 0.0, "value_loss": 0.0, "clipped": 0.0, "ratio_sum": 0.0, "ratio_max": 0.0}
        if not len(trained):
            return Gradient(0.0, len(batch), 0, 0.0, 0.0, 0.0)
        chosen = batch if len(trained) == len(batch) else batch.select(trained)
        for rows in micro_batches(chosen, self.micro_batch_tokens):
            part = chosen.select(rows)
            loss, found = self.loss(part)
            if not bool(torch.isfinite(loss)):
                return Gradient(
                    0.0, len(batch), 0, 0.0, 0.0, 0.0, problem=f"the loss is {float(loss.detach())} in {names(part)}"
                )
            loss.backward()
            totals["ratio_max"] = max(totals["ratio_max"], found.pop("ratio_max"))
            totals["loss"] += float(loss.detach())
            for name, value in found.items():
                totals[name] += value
        num_actions = int(chosen.mask.sum())
        return Gradient(
            loss=totals["loss"],
            num_trajectories=len(batch),
            num_trained=len(trained),
            log_ratio_max=totals["ratio_max"],
            log_ratio_mean=totals["ratio_sum"] / num_actions,
            clip_fraction=totals["clipped"] / num_actions,
            kl=totals["kl"],
            value_loss=totals["value_loss"],
        )

    def _within_memory(self, work: Callable[[], T]) -> T:
        """Do the work; each time memory does not suffice, halve the micro-batches, for good, and do it again."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.micro_batch_tokens == 1:
                    raise OutOfMemoryError(
                        "out of memory with one trajectory at a time; lower rollout.max_completion_length, "
                        "train an adapter (--policy.lora.r 16) or take a smaller model"
                    ) from error
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch_tokens //= 2

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return (Σ token_weights·per-token loss, sums for the record) of one micro-batch; `clipped` by backward."""
        assert batch.advantages is not None and batch.token_weights is not None
        left_out = {} if self.dropout is None else {"dropout": replace(self.dropout, step=self.num_updates)}
        out = self._evaluate(self.policy, batch, **left_out)
        old_log_probs = out.log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
        options = self.algorithm.options_of(self.algorithm.surrogate)
        seen = out.log_probs.view_as(out.log_probs)  # by the surrogate alone: KL and entropy have ways of their own
        per_token = self.algorithm.surrogate(seen, old_log_probs, batch.advantages, batch.mask, **options)
        if batch.importance_weights is not None:
            per_token = per_token * batch.importance_weights
        if self.algorithm.entropy_coef:
            assert out.entropies is not None
            per_token = per_token - self.algorithm.entropy_coef * out.entropies
        found = {"clipped": 0.0}
        if self.algorithm.kl_in_loss:
            assert batch.reference_log_probs is not None
            kl = out.kl_exact
            kl = self.algorithm.kl_terms(out.log_probs, batch.reference_log_probs, batch.mask) if kl is None else kl
            per_token = per_token + self.algorithm.beta * kl
            found["kl"] = float(masked_sum(kl.detach() * batch.token_weights, batch.mask))
        if self.algorithm.uses_values:
            assert out.values is not None and batch.value_targets is not None
            value_loss = squared_error(out.values, batch.value_targets)
            per_token = per_token + self.value_coef * value_loss
            found["value_loss"] = float(masked_sum(value_loss.detach() * batch.token_weights, batch.mask))
        with torch.no_grad():
            log_ratio = torch.where(batch.mask & ~batch.given, out.log_probs - batch.policy_log_probs, 0.0)
            found["ratio_max"] = float(log_ratio.abs().max())
            found["ratio_sum"] = float(log_ratio.sum())
        if batch.old_log_probs is not None:
            seen.register_hook(lambda slope: found.update(clipped=num_clipped(slope, batch)))
        return masked_sum(per_token * batch.token_weights, batch.mask), found

    # --- update ------------------------------------------------------------------------------------------------

    def update(self, gradient: Gradient, step: int) -> Update:
        """Clip the gradient to max_grad_norm and step the optimiser at step's learning rate. A gradient that is not
        finite is dropped: weights, optimiser and count of updates stay as they were, bit for bit."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values()) if gradients else torch.zeros(())
        problem = gradient.problem
        if problem is None and not bool(torch.isfinite(norm)):
            bad = [name for name, values in gradients.items() if not bool(torch.isfinite(values).all())]
            problem = (
                f"the gradient's norm is {float(norm)}; not finite in {', '.join(bad[:4]) or 'its sum of squares'}"
            )
        if problem is not None:
            self.optimizer.zero_grad(set_to_none=True)
            return Update(gradient, 0.0, problem)
        if gradients:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.max_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * self.schedule(step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.num_updates += 1
            self.policy.weights_changed()
        return Update(gradient, float(norm))

    def current_learning_rate(self) -> float:
        """Return the learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    # --- state -------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the next update depends on: tensors by parameter name, and numbers."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value
        numbers = {"num_updates": self.num_updates, "last_learning_rate": self.current_learning_rate()}
        return tensors, numbers | {"moving_baseline": self.moving_baseline}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `state` returned. Raises InputError unless names and shapes are those of the parameters."""
        kept_names = {key.removeprefix("parameter/") for key in tensors if key.startswith("parameter/")}
        if different := sorted(kept_names ^ self.parameters.keys()):
            raise InputError(
                f"the checkpoint holds other parameters than the policy: {', '.join(different[:6])} in one of them only"
            )
        for name, parameter in self.parameters.items():
            saved = tensors[f"parameter/{name}"]
            if saved.shape != parameter.shape or saved.dtype != parameter.dtype:
                raise InputError(
                    f"the checkpoint's {name} is {saved.dtype} {list(saved.shape)}, "
                    f"the policy's {parameter.dtype} {list(parameter.shape)}"
                )
        self.num_updates = numbers["num_updates"]
        self.moving_baseline = numbers["moving_baseline"]
        for group in self.optimizer.param_groups:
            group["lr"] = numbers["last_learning_rate"]
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            kept = {key.split("/")[1]: value.clone() for key, value in tensors.items() if _is_state_of(key, name)}
            if kept:
                self.optimizer.state[parameter] = kept
        self.policy.weights_changed()


def num_clipped(slope: Tensor, batch: Batch) -> float:
    """Return the number of actions with an advantage whose gradient the surrogate clips or masks to 0, by the loss's
    slope in their log-probs [batch, time]."""
    assert batch.advantages is not None
    counted = batch.mask & (batch.advantages != 0)
    if batch.importance_weights is not None:
        counted &= batch.importance_weights != 0
    return float(((slope == 0) & counted).sum())


def names(batch: Batch) -> str:
    """Return which trajectories these are, for a message."""
    found = [f"prompt {uid} sample {sample}" for uid, sample in zip(batch.prompt_uid.tolist(), batch.sample.tolist())]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _is_state_of(key: str, name: str) -> bool:
    return key.startswith("optimizer/") and key.split("/", 2)[2] == name


def learning_rate_schedule(max_steps: int, warmup_steps: int, kind: str) -> Callable[[int], float]:
    """Return the learning rate's factor at a step: linearly up over `warmup_steps`, then constant, or down to 0 at
    `max_steps` in a line, or as half a cosine, ½(1 + cos πx), x the share that is done (Loshchilov and Hutter 2017)."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if kind == "constant":
            return 1.0
        left = max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))
        return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2

    return factor

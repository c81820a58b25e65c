"""Parts of the configuration: what all are, adapters, rollouts, rewards, checkpoints, warm starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NUM_SPECIAL_TOKENS = 4  # of a new tokenizer: the end of a text, and three roles
BYTES = 256


class Section(BaseModel):
    """A frozen part of the configuration; keys it does not know are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Lora(Section):
    """A low-rank adapter (peft); without this section all weights are trained."""

    r: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32, gt=0)
    target_modules: str | list[str] = "all-linear"


class RolloutConfig(Section):
    """How experience is gathered."""

    num_prompts: int = Field(default=8, ge=1)
    """Different prompts a step (1 for an environment: its episodes are one group)."""
    num_generations: int = Field(default=8, ge=1)
    """Completions a prompt, or episodes a step."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens; a longer completion is cut and counts as truncated."""
    max_rows: int = Field(default=128, ge=8)
    """Completions that are sampled side by side: memory, not results."""
    num_spare_prompts: int = Field(default=0, ge=0)
    """Further prompts of a step, each sampled only where a group's rewards are all equal, in its place (Yu et al. 2025:
    dynamic sampling). With a centred advantage the gradient stays exact up to a constant."""
    upsampling: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts drawn in proportion to how much their rewards differed last time, the others uniformly, all
    with replacement; each counts (1/n)/q, so the gradient is that of uniform prompts. 0: every prompt once an epoch."""
    solution_tokens: int = Field(default=0, ge=0)
    """Of mixer: so many of a completion's first tokens are the solution's at the first step, in a line down to 0."""
    exploration_epsilon: float = Field(default=0.0, ge=0, lt=1)
    """With this chance an environment's action is drawn uniformly, in training; needs importance weights."""


class RewardConfig(Section):
    """How reward functions are called."""

    timeout_seconds: float | None = Field(default=None, gt=0)
    """For one completion. With it, functions run in child processes that can be killed, a completion a call."""
    on_failure: Literal["error", "exclude"] = "error"
    """Of a function that raises, takes too long, or gives no number: stop, or leave the completion out of the step."""
    overlong_tokens: int | None = Field(default=None, ge=1)
    """Soft overlong punishment (Yu et al. 2025): over the last so many tokens of max_completion_length a completion's
    reward falls linearly by up to 1."""
    truncated: Literal["keep", "exclude"] = "keep"
    """Of a completion that the limit cut. exclude: out of the step; the objective is that of completions that end."""
    dense: bool = False
    """Pay each token what it adds, R(y_1..y_t) − R(y_1..y_t−1): the same sum, told sooner (Ng et al. 1999). Functions
    score every beginning of a completion; one that takes `partial`, a list, is told which those are."""
    num_workers: int = Field(default=2, ge=1)
    """Child processes a function."""
    max_calls: int = Field(default=1000, ge=1)
    """A child is replaced after so many: what it leaked is then gone."""


class CheckpointConfig(Section):
    """When the run is saved."""

    every_steps: int = Field(default=20, ge=1)
    keep: int = Field(default=2, ge=1)


class Shape(Section):
    """Of a new network: a Llama with tied embeddings, or as an encoder a BERT with rotary positions."""

    hidden_size: int = Field(default=128, ge=8)
    intermediate_size: int = Field(default=384, ge=8)
    num_hidden_layers: int = Field(default=4, ge=1)
    num_attention_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Each is shared by equally many heads: a step of sampling reads keys and values mostly. None: every head has its
    own. An encoder has no other."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Shape:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of 2·num_attention_heads={2 * self.num_attention_heads}"
                ": each head rotates pairs of units"
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}: each is shared by equally many"
            )
        return self


class NewConfig(Section):
    """A new network and a new tokenizer, learnt from the prompts and solutions of the task's training side."""

    context_length: int = Field(default=256, ge=8)
    """Tokens that the network can read."""
    vocab_size: int = Field(default=1024, ge=BYTES + NUM_SPECIAL_TOKENS)
    """Of the tokenizer, byte-level BPE, as in pretrain."""
    shape: Shape = Shape()


class SftConfig(Section):
    """Supervised fine-tuning on the task's demonstrations, in place of rollout, reward and algorithm."""

    batch_size: int = Field(default=32, ge=1)
    """Demonstrations a step."""
    new: NewConfig | None = None
    """Begin with a network that knows nothing, in place of policy.model."""
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    """Share of hidden units left out of a gradient's forward, others each time: for data that is read several times. In
    steps of 1/256."""

    @model_validator(mode="after")
    def _dropout_leaves_something_out(self) -> SftConfig:
        if 0 < self.dropout < 1 / 512:
            raise ValueError(
                f"dropout={self.dropout} would leave nothing out: it goes in steps of 1/256; take 0.004 or 0"
            )
        return self


class PretrainConfig(Section):
    """Next-token prediction on the task's text, or that of masked tokens (policy.kind "encoder"), by a new network with
    a new tokenizer."""

    batch_size: int = Field(default=16, ge=1)
    """Blocks of text a step."""
    block_size: int = Field(default=256, ge=8)
    """Tokens a block; it is the new network's context. With masked tokens a document's own blocks: none is joined."""
    vocab_size: int = Field(default=1024, ge=BYTES + NUM_SPECIAL_TOKENS)
    """Of the new tokenizer, byte-level BPE: 260 is bytes alone, each further token merges two."""
    shape: Shape | None = None
    """None: that of policy.model, a folder with a config.json, where one is named; else the defaults."""

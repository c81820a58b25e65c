"""Parts of the configuration: what all of them are, adapters, checkpoints, warm starts by maximum likelihood."""

from __future__ import annotations

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

    @model_validator(mode="after")
    def _heads_fit(self) -> Shape:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of 2·num_attention_heads={2 * self.num_attention_heads}"
                ": each head rotates pairs of units"
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

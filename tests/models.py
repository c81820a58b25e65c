"""Tiny Hugging Face models, tokenizers and batches, built in memory or written to a folder."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from logpi.algorithms import Algorithm, get_algorithm
from logpi.batching import minibatches
from logpi.credit import assign_credit
from logpi.learner import Learner
from logpi.policies import attention
from logpi.policies.causal_lm import CausalLM
from logpi.policies.token_log_probs import Transform, next_logits, softmax
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.trajectory import Batch, Trajectory, make_batch

NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
CHARACTERS = ["<eos>", "<end>", "<pad>", *"0123456789+=? ", *"Whatis"]
VOCABULARY = len(CHARACTERS)
ENDS = (0, 1)  # 0 is also what padding holds: the hardest case
CONTEXT = 192


def tokenizer(pad: str = "<pad>", chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters."""
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    out = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token=pad)
    out.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}=" if chat else None
    return out


def network(kind: str, *, vocabulary: int = VOCABULARY, context: int = CONTEXT, seed: int = 0) -> nn.Module:
    """Return a tiny model with logpi's attention: "gpt2" (absolute positions), "llama" (rotary, two query heads a key
    head), "qwen3" (norms in the heads, tied embeddings) or "gpt_neox" (partly rotary, attention beside the mlp)."""
    attention.register()
    torch.manual_seed(seed)
    ends = dict(bos_token_id=None, eos_token_id=0, pad_token_id=None, initializer_range=0.25)
    if kind == "gpt2":
        config: Any = GPT2Config(vocab_size=vocabulary, n_positions=context, n_embd=24, n_layer=2, n_head=3, **ends)
        out: Any = GPT2LMHeadModel(config)
    else:
        shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        shape |= dict(vocab_size=vocabulary, max_position_embeddings=context, **ends)
        if kind == "llama":
            out = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **shape))
        elif kind == "qwen3":
            out = Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, **shape))
        else:
            out = GPTNeoXForCausalLM(GPTNeoXConfig(rotary_pct=0.5, **shape))
    for name, parameter in out.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_" in name:
            nn.init.normal_(parameter, float("weight" in name), 0.1)  # no parameter at a value that hides a mistake
    out.set_attn_implementation(attention.NAME)
    return out


def policy(kind: str, dtype: torch.dtype = torch.float32, *, ends: tuple[int, ...] = ENDS, **options: Any) -> CausalLM:
    """Return a tiny policy; options go to the network or to Transform where these know them, else to CausalLM."""
    shape = {k: options.pop(k) for k in ("vocabulary", "context", "seed") if k in options}
    options["transform"] = Transform(**{f.name: options.pop(f.name) for f in fields(Transform) if f.name in options})
    module = network(kind, **shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
    context = shape.get("context", CONTEXT)
    out = CausalLM(module, tokenizer(), eos_token_ids=ends, context_length=context, dtype=dtype, **options)
    if out.is_lora:
        for name, parameter in out.trainable_parameters().items():
            if "lora_B" in name:
                nn.init.normal_(parameter, 0.0, 0.2)  # an adapter that does something
        out.weights_changed()
    return out


TURNS = "{% for m in messages %}{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '?' }}{% endfor %}"


def write(
    folder: Path,
    kind: str,
    *,
    pad: str = "<pad>",
    chat: bool = True,
    turns: bool = False,
    context: int = CONTEXT,
    generation_ends: Any = None,
) -> str:
    """Write a tiny model to a folder as save_pretrained does; return the folder's name. `turns`: with a template that
    later turns only add to."""
    module: Any = network(kind, context=context)
    module.set_attn_implementation("eager")
    module.generation_config.eos_token_id = generation_ends
    module.save_pretrained(folder)
    written = tokenizer(pad, chat)
    written.chat_template = TURNS if turns else written.chat_template
    written.save_pretrained(folder)
    return str(folder)


def prompts(lengths: list[int], vocabulary: int = VOCABULARY, seed: int = 0) -> list[TokenPrompt]:
    """Return random prompts of these lengths, uid i at place i."""
    draws = torch.Generator().manual_seed(seed)
    return [TokenPrompt(i, torch.randint(vocabulary, (n,), generator=draws)) for i, n in enumerate(lengths)]


def rewarded(trajectories: list[Trajectory]) -> list[Trajectory]:
    """Give each trajectory a reward that depends on its tokens, at its last action."""
    out = []
    for t in trajectories:
        rewards = torch.zeros(len(t), dtype=torch.float64)
        rewards[-1] = (int(t.actions.sum()) * 7 + len(t)) % 11 / 3
        out.append(replace(t, rewards=rewards))
    return out


def sample(
    policy: CausalLM, lengths: list[int], num_generations: int = 4, max_new_tokens: int = 20, **options: Any
) -> list[Trajectory]:
    """Generate from random prompts of these lengths and reward what comes."""
    asked = prompts(lengths, policy.network.config.vocab_size)
    return rewarded(generate(policy, asked, num_generations, Sampling(max_new_tokens, **options)))


def minibatch(learner: Learner, trajectories: list[Trajectory], *, several_updates: bool = False) -> Batch:
    """Take trajectories through the stages before the gradient, as the trainer does."""
    batch = learner.annotate(make_batch(trajectories), several_updates=several_updates)
    batch = assign_credit(learner.algorithm, batch)
    return next(minibatches(batch, learner.algorithm.token_weights))


def gradient(
    policy: CausalLM,
    trajectories: list[Trajectory],
    algorithm: Algorithm | str = "rloo",
    *,
    micro_batch_tokens: int = 10**9,
    several_updates: bool = False,
    reference: CausalLM | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Return the learner's loss and its gradient by parameter; KL is against `reference`, else today's policy."""
    row = get_algorithm(algorithm) if isinstance(algorithm, str) else algorithm
    learner = Learner(policy, row, learning_rate=1e-3, micro_batch_tokens=micro_batch_tokens)
    learner.reference = reference or learner.reference
    found = learner.backward(minibatch(learner, trajectories, several_updates=several_updates))
    return found.loss, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learner.parameters.items()}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest ‖found − expected‖/‖expected‖ over parameters; an expected 0 must be found as 0."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, wanted in expected.items():
        difference, scale = float((found[name] - wanted).norm()), float(wanted.norm())
        worst = max(worst, difference / scale if scale else (0.0 if not difference else float("inf")))
    return worst


def distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform) -> Tensor:
    """Return log π over the whole vocabulary, [rows, vocabulary], as the sampler has it."""
    logits = next_logits(hidden, weight, bias)[: len(hidden)]
    return softmax(logits, transform)[0].log_probs()

"""The fused trunk gives the module's bits, and steps aside where it would not."""

from __future__ import annotations

import pytest
import torch
from models import NATIVE_BF16, gradient, network, policy, prompts, relative_error, sample
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from logpi.policies import attention, products
from logpi.policies.adapters import merged_weight
from logpi.policies.attention import KEY_MULTIPLE, KeyValues
from logpi.policies.causal_lm import CausalLM
from logpi.policies.fused import FusedTrunk
from logpi.policies.products import Product
from logpi.rollout.engine import Sampling, generate

DTYPES = [torch.float32] + [torch.bfloat16] * NATIVE_BF16
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}  # B is not 0
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def other(kind):
    attention.register()
    torch.manual_seed(0)
    make, config = (MistralForCausalLM, MistralConfig) if kind == "mistral" else (Qwen2ForCausalLM, Qwen2Config)
    more = dict(tie_word_embeddings=True, pad_token_id=3) if kind == "qwen2_tied" else {}
    shape = dict(vocab_size=30, max_position_embeddings=192, initializer_range=0.25, eos_token_id=0, **SHAPE)
    made = make(config(**shape, **more))
    made.set_attn_implementation(attention.NAME)
    if kind != "mistral":  # its biases start at 0
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return made


def unfused(made):
    """Make a policy run through its module, with weights taken from the learner's now, adapters as peft has them."""
    for product in made.fused.products():
        for layer, source in zip(product.layers, product.sources, strict=True):
            weight = merged_weight(source).detach().to(product.dtype, copy=True)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            vars(source).pop("forward", None)
    made.fused = None
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen2", "mistral"])
def test_it_gives_the_modules_bits(kind, dtype):
    module = network(kind) if kind in ("llama", "qwen3") else other(kind)
    made = CausalLM(module, None, eos_token_ids=(0,), context_length=192, dtype=dtype)
    assert made.fused is not None
    for rows, time in ((1, 1), (5, 8), (24, 3)):
        tokens = torch.arange(rows * time).view(rows, time) % module.config.vocab_size
        positions = (torch.arange(time) + torch.arange(rows)[:, None]) % KEY_MULTIPLE
        attend = (positions[:, None, :, None] >= torch.arange(KEY_MULTIPLE)).contiguous()
        if dtype == torch.float32:  # rows of products come in eights, as the engine pads them
            tokens, positions, attend = (x.repeat(8, *[1] * (x.ndim - 1)) for x in (tokens, positions, attend))
        with torch.no_grad():
            found = made.hidden_states(made.sampler, tokens, positions, attend, KeyValues())
            fused = made.fused
            expected = unfused(made).hidden_states(made.sampler, tokens, positions, attend, KeyValues())
            made.fused = fused
        assert torch.equal(found, expected)


@pytest.fixture
def threads():
    """Set the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(576, 1536), (960, 576), (100, 24)])
def test_few_rows_have_the_bits_that_they_have_among_many(outputs, inputs, bias, num_layers, threads, monkeypatch):
    """Multiplied as (W xᵀ)ᵀ, for which eight rows are filled up to sixteen, or not."""
    threads(2)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(inputs, outputs, bias=bias) for _ in range(num_layers)]
    turned, products_turned = Product(layers, layers), []
    multiply = products._turned
    monkeypatch.setattr(products, "_turned", lambda *asked: products_turned.append(1) or multiply(*asked))
    rows = torch.randn(256, inputs)
    with torch.no_grad():
        many = torch.cat([layer(rows) for layer in layers], -1)
        for number in (8, 16, 24, 64, 128, 136):
            products_turned.clear()
            found = turned(rows[:number, None])
            assert torch.equal(found[:, 0], many[:number]), number
            assert found.is_contiguous() and len(products_turned) == num_layers * (turned.turns and number <= 128)


def test_rows_are_turned_only_where_the_bits_stay_and_threads_share_them(threads, monkeypatch):
    layers = [torch.nn.Linear(48, 32)]
    threads(1)
    assert not Product(layers, layers).turns
    threads(2)
    monkeypatch.setattr(products, "_turned", lambda layer, x: layer(x))
    assert Product(layers, layers).turns
    monkeypatch.setattr(products, "_turned", lambda layer, x: layer(x) * (1 + 2**-23))
    assert not Product(layers, layers).turns


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "lora"),
    [(kind, None) for kind in ("llama", "qwen3", "qwen2", "qwen2_tied", "mistral")]
    + [("llama", LORA), ("qwen2", LORA)],
)
def test_its_gradient_is_the_modules(kind, lora, dtype):
    def made(dtype, *, fused):
        module = network(kind) if kind in ("llama", "qwen3") else other(kind)
        found = CausalLM(module, None, eos_token_ids=(0,), context_length=192, dtype=dtype, lora=lora)
        assert found.fused is not None
        return found if fused else unfused(found)

    exact = made(torch.float32, fused=False)
    trajectories = sample(exact, [3, 17, 70, 40], max_new_tokens=30)
    expected = gradient(exact, trajectories)[1]
    fused = gradient(made(dtype, fused=True), trajectories, micro_batch_tokens=150)[1]  # which add up
    error = relative_error(fused, expected)
    if dtype == torch.float32:
        assert 0 < error < 1e-5
    else:  # no farther from float32's than the module's in bfloat16
        assert 0 < error < 1.1 * relative_error(gradient(made(dtype, fused=False), trajectories)[1], expected)


def test_networks_of_another_kind_run_through_their_module():
    assert policy("gpt2").fused is None and policy("gpt_neox").fused is None


def test_a_network_that_only_looks_like_llama_runs_through_its_module():
    made = policy("llama")
    unfused(made)
    mlp = made.sampler.base_model.layers[1].mlp
    original = mlp.forward
    mlp.forward = lambda x: original(x) * 1.5  # as Granite's residual multiplier would
    assert FusedTrunk.of(made) is None


def test_it_follows_the_weights():
    made = policy("llama", DTYPES[-1])
    asked = prompts([9, 30])
    before = generate(made, asked, 2, Sampling(6, greedy=True))
    with torch.no_grad():
        for parameter in made.trainable_parameters().values():
            parameter.mul_(1.5)
    made.weights_changed()
    after = generate(made, asked, 2, Sampling(6, greedy=True))
    unfused(made)
    expected = generate(made, asked, 2, Sampling(6, greedy=True))
    for a, b in zip(after, expected, strict=True):
        assert torch.equal(a.actions, b.actions) and torch.equal(a.behavior_log_probs, b.behavior_log_probs)
    assert any(not torch.equal(a.behavior_log_probs, b.behavior_log_probs) for a, b in zip(after, before, strict=True))


@pytest.mark.skipif(not NATIVE_BF16, reason="weights are laid out for the processor in bf16 only")
def test_a_packed_product_has_the_plain_bits_for_any_number_of_rows():
    torch.manual_seed(1)
    layers = [torch.nn.Linear(96, n, bias=True).to(torch.bfloat16) for n in (64, 32)]
    product = Product(layers, layers)
    assert product.packed is not None and product.shape == (96, 96)
    x = torch.randn(130, 96).to(torch.bfloat16)
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], -1)
        for rows in (1, 3, 8, 64, 130):
            assert torch.equal(product(x[:rows]), expected[:rows])

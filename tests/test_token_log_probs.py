"""Chunked log-probs against plain log_softmax, values and gradients, and the promise on a row's bits."""

from __future__ import annotations

import pytest
import torch
from models import distribution
from torch.nn import functional as F

from logpi.policies import token_log_probs as module
from logpi.policies.token_log_probs import (
    CHUNK_ROWS,
    PLAIN,
    ROW_MULTIPLE,
    Transform,
    pad_rows,
    token_log_probs,
)

NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
DTYPES = [torch.float32, torch.float64] + [torch.bfloat16] * NATIVE_BF16


def problem(rows, width=16, vocabulary=50, dtype=torch.float32, seed=0):
    """Return hidden, weight, bias, actions, and a slope for each row's log-prob."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in [(rows, width), (vocabulary, width), (vocabulary,)]
    )
    actions = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, actions, torch.randn(rows, generator=generator).to(dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradcheck(temperature, has_bias):
    hidden, weight, bias, actions, _ = problem(11, 3, 5, torch.float64)
    inputs = (hidden, weight, bias) if has_bias else (hidden, weight)

    def log_probs(hidden, weight, bias=None):
        return token_log_probs(hidden, weight, bias, actions, Transform(temperature), torch.float64)[0]

    assert torch.autograd.gradcheck(log_probs, inputs)


@pytest.mark.parametrize("rows", [1, 7, 8, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
def test_values_and_gradients_are_those_of_log_softmax(rows, temperature, dtype, tolerance):
    *inputs, actions, slopes = problem(rows, dtype=dtype)
    found, entropies, _ = token_log_probs(*inputs, actions, Transform(temperature), dtype, with_entropy=True)
    found_slopes = torch.autograd.grad(found, inputs, slopes)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    everything = (F.linear(*wide) / temperature).log_softmax(-1)
    expected = everything.gather(1, actions[:, None])[:, 0]
    expected_slopes = torch.autograd.grad(expected, wide, slopes.double())
    expected_entropies = torch.distributions.Categorical(logits=everything.detach()).entropy()
    close = dict(rtol=tolerance, atol=tolerance, check_dtype=False)
    torch.testing.assert_close(found.detach(), expected.detach(), **close)
    torch.testing.assert_close(entropies.detach(), expected_entropies, **close)
    assert found.dtype == dtype
    for name, slope, wanted in zip(["hidden", "weight", "bias"], found_slopes, expected_slopes, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(slope / scale, wanted / scale, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_come_back_in_the_parameters_dtype_and_only_where_wanted(dtype):
    *inputs, actions, slopes = problem(20, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    slopes_of_all = torch.autograd.grad(token_log_probs(*inputs, actions, PLAIN, dtype)[0], inputs, slopes)
    assert [s.dtype for s in slopes_of_all] == [x.dtype for x in inputs]
    for i, wanted in enumerate(slopes_of_all):
        some = [x.detach().requires_grad_(j == i) for j, x in enumerate(inputs)]
        (slope,) = torch.autograd.grad(token_log_probs(*some, actions, PLAIN, dtype)[0], some[i], slopes)
        assert torch.equal(slope, wanted)


@pytest.mark.skipif(not NATIVE_BF16, reason="no native bf16 on this processor")
def test_bf16_products_stay_near_fp32():
    *inputs, actions, slopes = problem(200)
    results = {d: token_log_probs(*inputs, actions, PLAIN, d) for d in (torch.float32, torch.bfloat16)}
    half, single = results[torch.bfloat16][0], results[torch.float32][0]
    assert half.dtype == torch.float32 and (half - single).abs().max() < 0.1
    for a, b in zip(torch.autograd.grad(half, inputs, slopes), torch.autograd.grad(single, inputs, slopes)):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "vocabulary"), [(64, 50), (96, 1031)])
def test_the_bits_of_a_row_do_not_depend_on_its_company(dtype, width, vocabulary):
    hidden, weight, bias, actions, _ = problem(2 * CHUNK_ROWS + 3, width, vocabulary)
    weight, bias = weight.detach(), bias.detach()

    def of(rows):
        asked = hidden[rows].detach(), weight, bias, actions[rows], Transform(1.3), dtype
        return torch.stack(token_log_probs(*asked, with_entropy=True)[:2])

    with torch.no_grad():
        whole = of(slice(None))
        for rows in [slice(0, n) for n in (1, 2, 7, 8, 9, 40, 127, 128, 129)] + [slice(17, 18), slice(100, 200)]:
            assert torch.equal(of(rows), whole[:, rows]), rows
        # a decoding step sees few rows: the same bits
        few = distribution(hidden[5:8].detach(), weight.to(dtype), bias.to(dtype), Transform(1.3))
        assert torch.equal(few.gather(1, actions[5:8, None])[:, 0], whole[0, 5:8])


@pytest.mark.parametrize("rows", [5, CHUNK_ROWS + 9])
def test_against_torchs_linear_cross_entropy(rows):
    hidden, weight, bias, actions, _ = problem(rows, dtype=torch.float64)
    expected = -F.linear_cross_entropy(hidden, weight, actions, linear_bias=bias, reduction="sum")
    found = token_log_probs(hidden, weight, bias, actions, PLAIN, torch.float64)[0].sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    inputs = (hidden, weight, bias)
    for slope, wanted in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-12)


def reference_of(rows, width=16, vocabulary=50, dtype=torch.float32):
    """Return hidden, weight, bias of another network."""
    return tuple(x.detach() for x in problem(rows, width, vocabulary, dtype, seed=9)[:3])


@pytest.mark.parametrize("asked", [(2,), (0, 2), (0, 1, 2)], ids=["kl", "log_probs", "all"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradcheck_of_the_exact_kl(asked, has_bias):
    *inputs, actions, _ = problem(11, 3, 5, torch.float64)
    reference = reference_of(11, 3, 5, torch.float64)
    inputs, reference = (inputs, reference) if has_bias else (inputs[:2], (*reference[:2], None))

    def function(hidden, weight, bias=None):
        inputs = hidden, weight, bias, actions, Transform(0.7), torch.float64, reference
        out = token_log_probs(*inputs, with_entropy=True)
        return tuple(out[i] for i in asked)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("rows", [7, CHUNK_ROWS + 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-11)])
def test_the_exact_kl_is_torchs_and_the_reference_has_no_gradient(rows, dtype, tolerance):
    *inputs, actions, slopes = problem(rows, dtype=dtype)
    reference = [x.requires_grad_() for x in reference_of(rows, dtype=dtype)]
    found = token_log_probs(*inputs, actions, Transform(0.7), dtype, reference)[2]
    found_slopes = torch.autograd.grad(found, inputs + reference, slopes, allow_unused=True)
    assert found_slopes[3:] == (None, None, None)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    mine, other = ((F.linear(*x) / 0.7).log_softmax(-1) for x in (wide, [x.detach().double() for x in reference]))
    expected = F.kl_div(other, mine, log_target=True, reduction="none").sum(-1)  # torch's names are the other way round
    close = dict(rtol=tolerance, atol=tolerance, check_dtype=False)
    torch.testing.assert_close(found.detach(), expected.detach(), **close)
    for slope, wanted in zip(found_slopes, torch.autograd.grad(expected, wide, slopes.double())):
        torch.testing.assert_close(slope / wanted.abs().max(), wanted / wanted.abs().max(), **close)


def test_the_exact_kl_changes_no_bit_of_the_others_and_is_zero_against_itself():
    *inputs, actions, _ = problem(CHUNK_ROWS + 3)
    plain = token_log_probs(*inputs, actions, PLAIN, torch.float32, with_entropy=True)
    reference = tuple(x.detach() for x in inputs)
    out = token_log_probs(*inputs, actions, PLAIN, torch.float32, reference, with_entropy=True)
    assert torch.equal(out[0], plain[0]) and torch.equal(out[1], plain[1]) and plain[2] is None
    assert token_log_probs(*inputs, actions, PLAIN, torch.float32)[1] is None  # nobody asked
    assert not out[2].any()


def test_rows_times_vocabulary_is_never_held_at_once(monkeypatch):
    sizes, plain = [], module.next_logits
    monkeypatch.setattr(module, "next_logits", lambda hidden, *rest: sizes.append(len(hidden)) or plain(hidden, *rest))
    *inputs, actions, slopes = problem(2 * CHUNK_ROWS + 3)
    found = torch.autograd.grad(token_log_probs(*inputs, actions, PLAIN, torch.float32)[0], inputs, slopes)
    each = [CHUNK_ROWS, CHUNK_ROWS, 3]
    assert sizes == [*each, CHUNK_ROWS, CHUNK_ROWS]  # forward, then backward, which has the last
    sizes.clear()
    kl = token_log_probs(*inputs, actions, PLAIN, torch.float32, reference_of(2 * CHUNK_ROWS + 3))[2]
    torch.autograd.grad(kl, inputs, slopes)
    assert sizes == [n for n in each for _ in range(2)] + [3, *[CHUNK_ROWS] * 4]  # the policy's and the reference's
    sizes.clear()
    monkeypatch.setattr(module, "CHUNK_BYTES", 50 * 4 * 1600)  # a vocabulary of 50
    fewer = torch.autograd.grad(token_log_probs(*inputs, actions, PLAIN, torch.float32)[0], inputs, slopes)
    assert sizes == [1600, 1600, 2 * CHUNK_ROWS + 3 - 3200, 1600, 1600]
    for a, b in zip(found, fewer, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_rows_and_extreme_logits():
    hidden, weight, bias, actions, _ = problem(0)
    log_probs, entropies, _ = token_log_probs(hidden, weight, bias, actions, PLAIN, torch.float32, with_entropy=True)
    assert log_probs.shape == entropies.shape == (0,)
    # a certain action: log-prob 0, entropy 0, no NaN from 0 · log 0
    hidden, weight = torch.ones(1, 1), torch.tensor([[1e4], [0.0]])
    asked = hidden, weight, None, torch.tensor([0]), PLAIN, torch.float32
    log_probs, entropies, _ = token_log_probs(*asked, with_entropy=True)
    assert log_probs.tolist() == [0.0] and entropies.tolist() == [0.0]


def test_pad_rows():
    tensor = torch.ones(3, 10, 2)
    assert pad_rows(tensor).shape == (ROW_MULTIPLE, 10, 2) and pad_rows(tensor).sum() == 60
    assert pad_rows(tensor, 16, dim=1).shape == (3, 16, 2) and pad_rows(tensor, 5, dim=1) is tensor

"""Every draw is keyed by (seed, stream, step, prompt, sample, position): nothing to save, nothing to restore.

The generator is Philox4x64-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
section 3.3), vectorised over counters: key = (seed, stream), counter = (step, prompt uid, sample, position). A draw
depends on its own key and counter only, so results don't depend on batching, order or where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """What a draw is for; two streams never share a random number."""

    INITIALISATION = 0
    DATA_ORDER = 1
    ROLLOUT = 2
    ENVIRONMENT = 3
    MINIBATCH = 4
    EVALUATION = 5
    EVALUATION_ENVIRONMENT = 6
    PROBE = 7
    BOOTSTRAP = 8
    MASKING = 9
    UPSAMPLING = 10
    DROPOUT = 11


def _multiply(a: np.ndarray, b: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Return (high, low) 64-bit halves of the 128-bit product."""
    a_low, a_high = a & _LOW, a >> _HALF
    b_low, b_high = b & _LOW, b >> _HALF
    low_low = a_low * b_low
    high_low = a_high * b_low + (low_low >> _HALF)
    low_high = a_low * b_high + (high_low & _LOW)
    return a_high * b_high + (high_low >> _HALF) + (low_high >> _HALF), a * b


def philox4x64(key: tuple[int, int], counter: tuple) -> tuple[np.ndarray, ...]:
    """Return the four 64-bit words of Philox4x64-10 for each counter; the counter's parts broadcast."""
    mask = (1 << 64) - 1
    parts = np.broadcast_arrays(*[np.asarray(c, dtype=np.uint64) for c in counter])
    c0, c1, c2, c3 = (np.array(p) for p in parts)
    k0, k1 = key[0] & mask, key[1] & mask
    with np.errstate(over="ignore"):
        for _ in range(10):
            high0, low0 = _multiply(c0, _MULTIPLIERS[0])
            high1, low1 = _multiply(c2, _MULTIPLIERS[1])
            c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
            k0, k1 = (k0 + _WEYL[0]) & mask, (k1 + _WEYL[1]) & mask
    return c0, c1, c2, c3


def uniforms(seed: int, stream: Stream, step, prompt, sample, position) -> np.ndarray:
    """Return uniform numbers in [0, 1) with 53 random bits, one per broadcast (step, prompt, sample, position)."""
    words = philox4x64((seed, int(stream)), (step, prompt, sample, position))
    return (words[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_bytes(seed: int, stream: Stream, step: int, prompt: int, count: int) -> np.ndarray:
    """Return `count` bytes of one key [count]: numpy's Philox, the same function, with the number of the draw as the
    first word of its counter and (step, prompt) as the next two."""
    mask = (1 << 64) - 1
    key, counter = ([number & mask for number in numbers] for numbers in ((seed, int(stream)), (0, step, prompt, 0)))
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return generator.random_raw(-(-count // 8)).view(np.uint8)[:count]


def integer_seed(seed: int, stream: Stream, step: int = 0, index: int = 0) -> int:
    """Return a seed below 2^31 for a library that wants an integer of its own."""
    return int(uniforms(seed, stream, step, index, 0, 0) * 2**31)


def permutation(seed: int, stream: Stream, size: int, step: int = 0, index: int = 0) -> np.ndarray:
    """Return a uniformly random order of range(size), a pure function of its key."""
    words = philox4x64((seed, int(stream)), (step, index, 0, np.arange(size)))
    return np.lexsort((np.arange(size), words[0]))


def with_replacement(size: int, index: int) -> np.ndarray:
    """Return `size` uniform draws from range(size), those of the index-th bootstrap: the same at each call."""
    return (uniforms(0, Stream.BOOTSTRAP, 0, 0, index, np.arange(size)) * size).astype(np.int64)


@contextmanager
def library_draws(seed: int, stream: Stream) -> Iterator[None]:
    """Run torch's own draws (initialisation) from a forked generator seeded by the key; the global one is untouched."""
    import torch  # here alone: tasks draw too, and import without it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(seed, stream))
        yield

"""Two classifiers of sentiment that share nothing but their purpose: other data, other features, other methods.

One is fit to be a reward. The other judges what came of it, and never is one: where a policy pleases the first alone,
it has learnt the classifier's mistakes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MIN_TEXTS = 2  # a feature is one that at least so many training texts have
L2 = 3e-5
CHARACTERS = range(3, 6)  # lengths of the judge's n-grams
MAX_ITERATIONS, TOLERANCE = 2000, 1e-6


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case; punctuation is none."""
    return WORD.findall(text.lower())


def word_grams(text: str) -> set[str]:
    """Return the words of a text and the pairs of neighbours, each once: a word that is repeated counts no more."""
    words = words_of(text)
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def character_grams(text: str) -> Counter[str]:
    """Return how often each n-gram of characters occurs, of lengths 3 to 5, in the text with single spaces around."""
    line = f" {' '.join(words_of(text))} "
    return Counter(line[i : i + n] for n in CHARACTERS for i in range(len(line) - n + 1))


@dataclass(frozen=True)
class WordModel:
    """P(positive | text) = σ(Σ w_g / √m) over the m word n-grams g of the text; one never seen has w = 0 and counts
    in m, so that nothing is gained by words that nobody knows."""

    weights: dict[str, float]

    def probability(self, text: str) -> float:
        """Return P(positive), 1/2 for a text without words."""
        grams = word_grams(text)
        logit = math.fsum(self.weights.get(gram, 0.0) for gram in grams) / math.sqrt(max(1, len(grams)))
        return 1 / (1 + math.exp(-logit))


@dataclass(frozen=True)
class CharacterModel:
    """Naive Bayes on character n-grams: log-odds(text) = Σ_g count(g) log P(g | positive)/P(g | negative)."""

    log_ratios: dict[str, float]

    def log_odds(self, text: str) -> float:
        """Return log P(positive | text)/P(negative | text) for equal priors."""
        return math.fsum(count * self.log_ratios.get(gram, 0.0) for gram, count in character_grams(text).items())


def fit_words(texts: Sequence[str], labels: Sequence[int], l2: float = L2) -> WordModel:
    """Return the maximum of (1/n) Σ log P(label_i | text_i) − l2/2 ‖w‖²: logistic regression without a constant.

    Nesterov's method for strongly convex functions: the rows' norms are at most 1, so the gradient is Lipschitz with
    1/4 + l2 (Nesterov 2004, "Introductory lectures on convex optimization", scheme 2.2.11). Labels are 0 and 1.
    """
    grams = [word_grams(text) for text in texts]
    names = _frequent(grams)
    index = {name: i for i, name in enumerate(names)}
    rows = np.repeat(np.arange(len(grams)), [sum(g in index for g in found) for found in grams])
    columns = np.array([index[g] for found in grams for g in sorted(found) if g in index], dtype=np.int64)
    values = 1 / np.sqrt([max(1, len(found)) for found in grams])[rows]
    target, num = np.asarray(labels, dtype=np.float64), len(grams)

    def gradient(at: np.ndarray) -> np.ndarray:
        logits = np.bincount(rows, values * at[columns], num)
        residuals = 1 / (1 + np.exp(-logits)) - target
        return np.bincount(columns, values * residuals[rows], len(names)) / num + l2 * at

    lipschitz = 0.25 + l2
    momentum = (math.sqrt(lipschitz) - math.sqrt(l2)) / (math.sqrt(lipschitz) + math.sqrt(l2))
    weights = ahead = np.zeros(len(names))
    for _ in range(MAX_ITERATIONS):
        slope = gradient(ahead)
        if np.linalg.norm(slope) < TOLERANCE:
            break
        weights, before = ahead - slope / lipschitz, weights
        ahead = weights + momentum * (weights - before)
    return WordModel(dict(zip(names, ahead.tolist())))


def fit_characters(texts: Sequence[str], labels: Sequence[int]) -> CharacterModel:
    """Return naive Bayes with one added to each count (Laplace)."""
    grams = [character_grams(text) for text in texts]
    names = _frequent(grams)
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for found, label in zip(grams, labels):
        counts[label].update(found)
    negative, positive = (math.log(sum(c[name] + 1 for name in names)) for c in counts)
    return CharacterModel(
        {name: math.log(counts[1][name] + 1) - positive - math.log(counts[0][name] + 1) + negative for name in names}
    )


def _frequent(grams: Iterable[Iterable[str]]) -> list[str]:
    """Return, sorted, what at least MIN_TEXTS of the texts have."""
    num_texts = Counter(name for found in grams for name in set(found))
    return sorted(name for name, num in num_texts.items() if num >= MIN_TEXTS)

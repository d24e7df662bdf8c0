"""CIDEr-D, the agreement of captions with references by weighted n-grams. Vedantam et al. 2015, arXiv:1411.5726.

Plain Python. N images, n-grams of n = 1 to 4 words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words, of the penalty on a difference in length
FACTOR = 10.0

NGram = tuple[str, ...]


def caption_words(text: str) -> list[str]:
    """Return the words of a caption: its runs of letters, digits, apostrophes and hyphens in lower case.

    Unlike the evaluation of MS-COCO, which runs a tokenizer in Java (PTB); punctuation counts in neither.
    """
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower())


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D of each caption, 0 to 10; the mean over them is the score of a model.

    For n-grams w of length n, h_w and r_w their counts in caption and reference, N images, and d_w the number of images
    in whose references w occurs, the weights are g_w(c) = c_w log(N / max(1, d_w)), and over a caption's M references
        CIDEr-D_n = 10 / M sum of exp(-(l_h - l_r)^2 / (2 sigma^2)) min(g(h), g(r)) . g(r) / (|g(h)| |g(r)|),
    with l the lengths in words, sigma 6; the result is the mean over n = 1 to 4, where a length without n-grams counts
    as 0: a caption of one word reaches at most 2.5. Source: Vedantam et al. 2015, sections 3 and 5. Like the authors'
    code, and unlike their equation 1, counts are not divided by the caption's length, which the cosine ignores.

    Args:
        candidates: N captions.
        references: of each image, one or more. They are the documents that d counts: with one image alone all scores
            are 0.

    Raises:
        ValueError: another number of references, or an image without one.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError(f"{len(candidates)} captions, {len(references)} images with references; give one or more each")
    documents: Counter[NGram] = Counter()
    counted = [[_ngrams(caption_words(text)) for text in texts] for texts in references]
    for of_image in counted:
        documents.update({gram for grams in of_image for gram in grams})
    log_n = math.log(max(1, len(references)))
    return [
        sum(_similarity(_ngrams(caption_words(text)), one, documents, log_n) for one in of_image) / len(of_image)
        for text, of_image in zip(candidates, counted)
    ]


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    """Return how often each n-gram of 1 to 4 words occurs."""
    lengths = range(1, LONGEST + 1)
    return Counter(tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))


def _similarity(
    candidate: Mapping[NGram, int], reference: Mapping[NGram, int], documents: Mapping[NGram, int], log_n: float
) -> float:
    """Return CIDEr-D of one caption with one reference."""
    dots, squares, lengths = [0.0] * LONGEST, [[0.0] * LONGEST for _ in range(2)], [0, 0]
    for side, grams in enumerate((candidate, reference)):
        for gram, count in grams.items():
            weight = log_n - math.log(max(1, documents.get(gram, 0)))
            squares[side][len(gram) - 1] += (count * weight) ** 2
            lengths[side] += count if len(gram) == 1 else 0
            if side == 0 and gram in reference:
                dots[len(gram) - 1] += min(count, reference[gram]) * reference[gram] * weight**2
    norms = [math.sqrt(a * b) for a, b in zip(*squares)]
    cosines = [dot / norm if norm else 0.0 for dot, norm in zip(dots, norms)]
    penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * SIGMA**2))
    return FACTOR * penalty * sum(cosines) / LONGEST

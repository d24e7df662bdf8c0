"""Retrieval of images by their captions and of captions by their images: recall at k and median rank.

N images, M captions (several an image), E width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_vision.errors import UserError

RECALLS = (1, 5, 10)
ROWS = 1024  # queries whose similarities with all candidates are held at a time


@dataclass(frozen=True)
class Retrieval:
    """Result of one direction.

    Attributes:
        recall: {k: fraction of the queries with a right answer among the k most similar}, for k in RECALLS.
        median_rank: of the first right answer, 1 is the best.
        ranks: (queries,) int64.
        candidates: number of answers to choose from.
    """

    recall: dict[int, float]
    median_rank: float
    ranks: Tensor
    candidates: int


def retrieve(images: Tensor, texts: Tensor, image_of_text: Tensor | Sequence[int]) -> tuple[Retrieval, Retrieval]:
    """Return the retrieval of texts for each image, and of images for each text, as MS-COCO's papers count them.

    An image has found its text if any of its captions is among the first k of all captions; each caption is a query of
    its own for its image. Among equally similar candidates the right one comes last, so that a collapsed model finds
    nothing. Source: Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1.

    Args:
        images: (N, E) vectors of any length; they are compared by cosine similarity.
        texts: (M, E).
        image_of_text: (M,) the row of each text's image; every image has a text.

    Raises:
        UserError: a row that is no image's, or an image without a text.
    """
    owner = torch.as_tensor(image_of_text, dtype=torch.int64, device=images.device)
    if len(owner) != len(texts) or not len(texts):
        raise UserError(f"retrieval: {len(texts)} texts and {len(owner)} rows of images; give one for each text")
    counts = torch.bincount(owner.clamp(min=0), minlength=len(images))
    if int(owner.min()) < 0 or len(counts) > len(images) or not bool(counts.all()):
        raise UserError(f"retrieval: each of the {len(images)} images needs a text, and each text one of them")
    images, texts = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (images, texts))
    return _result(_ranks_of_texts(images, texts, owner), len(texts)), _result(
        _ranks_of_images(images, texts, owner), len(images)
    )


def _ranks_of_texts(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """Return for each image the rank of its most similar caption among this caption and those of other images: (N,)."""
    ranks = []
    for start in range(0, len(images), ROWS):
        similarity = images[start : start + ROWS] @ texts.T  # (rows, M)
        own = owner == torch.arange(start, start + len(similarity), device=owner.device)[:, None]
        best = similarity.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
        ranks.append(1 + (~(similarity < best) & ~own).sum(1))  # NaN, too, counts as more similar
    return torch.cat(ranks)


def _ranks_of_images(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """Return for each text the rank of its image: (M,)."""
    ranks = []
    for start in range(0, len(texts), ROWS):
        similarity = texts[start : start + ROWS] @ images.T  # (rows, N)
        right = similarity.gather(1, owner[start : start + ROWS, None])
        ranks.append((~(similarity < right)).sum(1))
    return torch.cat(ranks)


def _result(ranks: Tensor, candidates: int) -> Retrieval:
    recall = {k: float((ranks <= k).double().mean()) for k in RECALLS}
    return Retrieval(recall, float(torch.quantile(ranks.double(), 0.5)), ranks.cpu(), candidates)


def recall_in_batch(images: Tensor, texts: Tensor) -> Tensor:
    """Return the mean, over both directions, of the fraction of pairs whose partner is the most similar of a batch.

    Args:
        images: (B, E) unit vectors; row i of both is a pair.
        texts: (B, E).

    Returns:
        Scalar in [0, 1]; B rows of B similarities are held ROWS at a time.
    """
    hits = images.new_zeros(())
    rows = torch.arange(len(images), device=images.device)
    for queries, candidates in ((images, texts), (texts, images)):
        for start in range(0, len(queries), ROWS):
            nearest = (queries[start : start + ROWS] @ candidates.T).argmax(1)
            hits = hits + (nearest == rows[start : start + ROWS]).sum()
    return hits / (2 * len(images))

"""Scores of captions against references, and the baseline of captions copied from the nearest image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision.evaluation.cider import caption_words, cider_d


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return bleu4, rouge_l (0 to 1) and cider (CIDEr-D, 0 to 10) of N captions.

    BLEU-4 (Papineni et al. 2002) is that of all captions together, unsmoothed; ROUGE-L (Lin 2004) is the F1 of the
    longest common subsequence with the best reference, the mean over captions (MS-COCO's evaluation weighs recall
    more, beta 1.2); both by torchmetrics. Words are those of `caption_words` in all three.

    Args:
        candidates: N captions.
        references: of each image, one or more.

    Raises:
        ValueError: as `cider_d`.
    """
    from torchmetrics.functional.text.bleu import bleu_score
    from torchmetrics.functional.text.rouge import rouge_score

    cider = cider_d(candidates, references)
    texts = [" ".join(caption_words(text)) for text in candidates]
    wanted = [[" ".join(caption_words(text)) for text in several] for several in references]
    # the other keys of ROUGE need nltk and its data, which it fetches
    same = {"normalizer": lambda text: text, "tokenizer": str.split, "rouge_keys": "rougeL", "accumulate": "best"}
    return {
        "bleu4": float(bleu_score(texts, wanted, n_gram=4)),
        "rouge_l": float(rouge_score(texts, wanted, **same)["rougeL_fmeasure"]),
        "cider": sum(cider) / max(1, len(cider)),
    }


def nearest_rows(queries: Tensor, features: Tensor, chunk: int = 1024) -> Tensor:
    """Return the row (M,) of `features` (N, D) with the largest cosine similarity to each query (M, D).

    Of equal ones the first. The caption of the nearest training image is the baseline of a caption model.
    """
    unit = F.normalize(features.float(), dim=1)
    parts = [(F.normalize(part.float(), dim=1) @ unit.T).argmax(1) for part in queries.split(chunk)]
    return torch.cat(parts)

"""CIDEr-D against values by hand; BLEU and ROUGE over the same words; the nearest rows."""

import math

import pytest
import torch

from lit_vision.evaluation.captions import caption_scores, nearest_rows
from lit_vision.evaluation.cider import caption_words, cider_d

TEN = ["one two three four five six seven eight nine ten", "a b c d e f g h i j"]


def test_words() -> None:
    assert caption_words("A cat's tail, half-red;  ONE 2nd “Größe”.") == [
        "a",
        "cat's",
        "tail",
        "half-red",
        "one",
        "2nd",
        "größe",
    ]


def test_cider_d__by_hand() -> None:
    # the reference itself: every cosine is 1, if no n-gram occurs in all images
    assert cider_d(TEN, [[text] for text in TEN]) == pytest.approx([10, 10])
    # one word has no longer n-grams: a quarter
    assert cider_d(["hat", "shoe"], [["hat"], ["shoe"]]) == pytest.approx([2.5, 2.5])
    # nothing in common; and a word that is in every image's references weighs nothing
    assert cider_d(["shoe", "the"], [["the hat"], ["the shoe"]]) == [0, 0]
    # one image alone: log(1 / 1) = 0
    assert cider_d(["a hat"], [["a hat"]]) == [0]
    # two references, one of them the caption: the mean over references
    assert cider_d([TEN[0], "x"], [[TEN[0], "y"], ["z"]])[0] == pytest.approx(5)


def test_cider_d__repetition_is_clipped_and_length_costs() -> None:
    # documents: hat 1, shoe 1; weights log 2 each. "hat hat" has h = (2,), the reference r = (1,):
    # clipped min(2, 1) * 1 / (2 * 1) = 0.5 for n = 1, nothing for n = 2; lengths 2 and 1: exp(-1 / 72)
    assert cider_d(["hat hat", "shoe"], [["hat"], ["shoe"]])[0] == pytest.approx(2.5 * 0.5 * math.exp(-1 / 72))
    # "red hat" against "red hat now": n = 1: 2 / sqrt(2 * 3), n = 2: 1 / sqrt(1 * 2), n = 3 has none in the caption
    wanted = 10 / 4 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) * math.exp(-1 / 72)
    assert cider_d(["red hat", "x"], [["red hat now"], ["x"]])[0] == pytest.approx(wanted)
    # a word of two of three images weighs log 1.5, one of one image log 3
    a, b = math.log(1.5), math.log(3)
    wanted = 10 / 4 * a * a / (math.hypot(a, b) * math.hypot(a, b))
    assert cider_d(["red hat", "x", "x"], [["red shoe"], ["red sky"], ["y"]])[0] == pytest.approx(wanted)


def test_cider_d__refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="2 captions, 1 images"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="one or more"):
        cider_d(["a"], [[]])


def test_caption_scores() -> None:
    found = caption_scores(["The cat sat on a mat.", "x"], [["no", "the cat sat on the mat"], ["y"]])
    # n-grams of both captions: 5 of 7, 3 of 5, 2 of 4, 1 of 3; as long as the closest references: no brevity penalty
    assert found["bleu4"] == pytest.approx((5 / 7 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found["rouge_l"] == pytest.approx(5 / 6 / 2)  # 5 of 6 words in order, and nothing of the second
    assert set(found) == {"bleu4", "rouge_l", "cider"}


def test_nearest_rows__by_cosine_and_the_first_of_equal_ones() -> None:
    features = torch.tensor([[0.0, 2.0], [5.0, 1.0], [0.0, 1.0], [1.0, 0.1]])
    queries = torch.tensor([[0.1, 9.0], [3.0, 0.4]])
    assert nearest_rows(queries, features, chunk=1).tolist() == [0, 3]

"""Match the classes of a data set to those of a model by name.

A label is a number, and two folders may number the same names differently: "dog" is class 1 beside "cat", and class 0
beside "zebra". So every command that compares a model's outputs with labels goes through `match_class_names`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from lit_vision.errors import UserError
from lit_vision.io.text import join_names


def match_class_names(
    model: Sequence[str], data: Sequence[str], where: str, by_number: bool = False
) -> tuple[np.ndarray, str]:
    """Return the model's number of each of the data's classes, and a note about the differences.

    Data may lack some of the model's classes: it is measured, and the model may still answer any of its own. Names are
    compared in Unicode's composed form (macOS writes "é" as two characters), otherwise exactly.

    Args:
        model: names of the model's K classes, in order.
        data: names of the data's k classes, in order.
        where: names the data in the error and in the note, such as "data.root photos".
        by_number: compare class i of the data with class i of the model, whatever their names are.

    Returns:
        (k,) int64 in [0, K), and one line of text, "" if the names and their order are the same.

    Raises:
        UserError: the data has a class that the model lacks; with `by_number`, the numbers of classes differ.
    """
    ours = [unicodedata.normalize("NFC", name) for name in model]
    theirs = [unicodedata.normalize("NFC", name) for name in data]
    if by_number:
        if len(ours) != len(theirs):
            raise UserError(
                f"{where}: has {len(theirs)} classes, the model has {len(ours)}, so they cannot be compared by number; "
                "leave out classes_by_number"
            )
        pairs = [f"{b} as {a}" for a, b in zip(model, data) if a != b]
        return np.arange(len(data)), f"{where}: classes are compared by number: {join_names(pairs)}" if pairs else ""
    number = {name: i for i, name in enumerate(ours)}
    unknown = [name for name, composed in zip(data, theirs) if composed not in number]
    absent = [name for name, composed in zip(model, ours) if composed not in set(theirs)]
    if unknown:
        also = f"; the model has {join_names(absent)}, which the data has not" if absent else ""
        raise UserError(
            f"{where}: has {join_names(unknown)}, which the model has not{also}; rename or remove classes, or compare "
            "them by number with classes_by_number"
        )
    numbers = np.array([number[name] for name in theirs], np.int64)
    if absent:
        return numbers, (
            f"{where}: has {len(data)} of the model's {len(model)} classes, not {join_names(absent)}; matched by name, "
            f"and an answer may be any of the {len(model)}"
        )
    if ours != theirs:
        return numbers, f"{where}: has the model's classes in another order; matched by name"
    return numbers, ""

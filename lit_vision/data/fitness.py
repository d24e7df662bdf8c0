"""Checks of what a scanned folder can be used for. The data module and doctor call the same ones, so they agree."""

from __future__ import annotations

from collections.abc import Callable

from lit_vision.data.folder import Folder
from lit_vision.errors import UserError


def require_training_images(folder: Folder, train: str, labels: bool, purpose: str = "training") -> None:
    """Raise a UserError unless the folder can be trained on.

    Args:
        folder: a scanned folder, or opened shards.
        train: name of the training split.
        labels: training needs labels of two classes or more; else unlabeled images will do, but there must be some.
        purpose: names the training in the message.
    """
    if labels:
        folder.require_split(train, f"{purpose} on labels")
        folder.require_classes("training on labels")
        folder.require_labels(train, "training on labels")
    elif not len(folder.unlabeled):
        folder.require_split(train, purpose)


def uses_of(folder: Folder, names: tuple[str, str, str]) -> dict[str, str]:
    """Return {use: reason why the folder is not fit for it, "" if it is}.

    The uses are "pre-training" (no labels), "training on labels" (a classifier that is validated after each epoch),
    "validation" and "testing" (of a finished classifier). Broken images are not looked at.

    Args:
        folder: a scanned folder, or opened shards.
        names: of the training, validation and test splits.
    """
    train, val, test = names

    def train_on_labels() -> None:
        require_training_images(folder, train, labels=True)
        folder.require_labels(val, "validation")

    return {
        "pre-training": _reason(lambda: require_training_images(folder, train, labels=False)),
        "training on labels": _reason(train_on_labels),
        "validation": _reason(lambda: folder.require_labels(val, "validation")),
        "testing": _reason(lambda: folder.require_labels(test, "testing")),
    }


def _reason(check: Callable[[], object]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""

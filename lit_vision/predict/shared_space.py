"""The space that images and texts share, for models trained on images with captions (ImageText).

B images, N texts, E width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.io.text import is_text
from lit_vision.methods import network_class
from lit_vision.weights.checkpoint_layouts import load_own_weights
from lit_vision.weights.compatibility import METHODS

if TYPE_CHECKING:
    from lit_vision.predict.runtimes import Model


class SharedSpaceInference(nn.Module):
    """Normalized images (B, C, S, S) -> unit vectors (B, E), by the image tower and its projection.

    Args:
        network: of images and captions, such as ImageText's; the text tower is not run.
    """

    outputs = ("features",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (self.network(images),)


def has_texts(layout: str) -> bool:
    """Return True if a checkpoint of this layout (see weights/compatibility.py) has a tower of texts."""
    return layout in METHODS and "text_projection" in METHODS[layout].parts


def build_image_text(path: Path, layout: str, hyper: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Return the network of images and captions of a checkpoint, on the CPU in evaluation mode, without gradients.

    Raises:
        UserError: the weights do not fit the hyper-parameters.
    """
    network = network_class(layout)(hyper)
    load_own_weights(network, state, path)
    return network.eval().requires_grad_(False)


def check_texts(texts: Sequence[str], where: str) -> list[str]:
    """Return texts without the space around them.

    Args:
        texts: one or more.
        where: the flag or file, for the error.

    Raises:
        UserError: none, or one that is empty or no Unicode text.
    """
    found = [] if isinstance(texts, str) else [" ".join(str(text).split()) for text in texts]
    if not found or not all(found):
        raise UserError(f"{where}: give one text or more, none empty")
    if not all(map(is_text, found)):
        raise UserError(f"{where}: is not Unicode text; give it as UTF-8")
    return found


def text_vectors(model: Model, texts: list[str]) -> np.ndarray:
    """Return unit vectors (N, E) of texts, float32; `model` is loaded with `shared_space`.

    Raises:
        UserError: the model was not trained on images with captions.
    """
    if model.encode_texts is None:
        raise no_texts_error(model.path)
    vectors: np.ndarray = model.encode_texts(texts).float().cpu().numpy()
    return vectors


def no_texts_error(path: Path) -> UserError:
    """Return the error for a model that cannot encode texts."""
    return UserError(
        f"{path}: was not trained on images with captions, so it has no words; give a run of ImageText, or "
        "open_clip:MODEL/WEIGHTS"
    )

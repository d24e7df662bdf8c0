"""Video classification: inference network. B clips, T frames, K classes, S pixels."""

from __future__ import annotations

from torch import Tensor, nn

DEFAULT_FRAMES = 8  # of a clip, where neither the model nor its training data says how many


class VideoInference(nn.Module):
    """Normalized clips (B, T, C, S, S) -> logits (B, K)."""

    outputs = ("logits",)

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.network = method

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (self.network(images),)

"""Prompt learning (CoOp): the words around a class name become vectors that are learned on frozen towers.

Source: Zhou et al. 2022, arXiv:2109.01134. The image tower is frozen and images are not augmented, so their vectors are
computed once, and training is a loop over numbers in plain PyTorch.
N images, K classes, M context vectors, S tokens of a name, D width of a token's vector, E width of the common space.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.errors import UserError

CONTEXTS = 16  # M of section 4.1
FIRST_STD = 0.02  # of random contexts, section 4.1
LR, FIRST_EPOCH_LR, MOMENTUM, WEIGHT_DECAY = 0.002, 1e-5, 0.9, 5e-4  # section 4.1; the last two of the authors' code
BATCH_SIZE = 32
_DOMAIN = 0x7072_6F6D_7074  # separates these random numbers from those of others with the same seed


class LearnedPrompts:
    """Prompts `[V]_1 ... [V]_M name.` of classes, of which the contexts [V] are learned and all else is frozen.

    The contexts stand between the start token, if the tokenizer adds one, and the name.

    Args:
        network: an ImageTextNetwork or OpenClipTowers in evaluation mode, whose parameters require no gradients.
        classes: K names.
        contexts: M, the number of random contexts; or words, whose vectors the contexts are at the start.
        per_class: contexts of its own for each class; False: one set for all.
        seed: of random contexts, in [0, 2**64).

    Attributes:
        contexts: (M, D), or (K, M, D) if `per_class`: a leaf that requires gradients.

    Raises:
        UserError: M and the longest name are more tokens than the text tower takes, or it has no vectors of tokens.
    """

    def __init__(
        self,
        network: Any,
        classes: Sequence[str],
        contexts: int | str = CONTEXTS,
        per_class: bool = False,
        seed: int = 0,
    ) -> None:
        self.network = network
        embedding: nn.Module = network.token_embedding
        weight: Tensor = embedding.weight
        names, mask = network.tokenize([f"{name}." for name in classes])
        empty, empty_mask = network.tokenize([""])
        self._start = _common_start(names, empty)
        if isinstance(contexts, str):
            words, _ = network.tokenize([contexts])
            after = int(empty_mask.sum()) - _common_start(words, empty)  # tokens at the end of any text
            words = words[0, _common_start(words, empty) : words.shape[1] - after]
            with torch.no_grad():
                first = embedding(words.to(weight.device))
        else:
            shape = (len(classes), contexts) if per_class else (contexts,)
            values = _random(seed, 0).normal(scale=FIRST_STD, size=(*shape, weight.shape[1]))
            first = torch.from_numpy(values).to(weight)
        if per_class and first.dim() == 2:
            first = first.expand(len(classes), -1, -1)
        self.contexts = first.detach().clone().requires_grad_()
        count, longest = self.contexts.shape[-2], names.shape[1]
        if count + longest > network.context_length:
            room = max(0, network.context_length - longest)
            raise UserError(
                f"contexts: {count} and the {longest} tokens of the longest class name are more than the "
                f"{network.context_length} that the model takes; give {room} or fewer"
            )
        # the contexts' places hold a token of the name, which text towers do not take for padding or an end
        place = names[:, self._start : self._start + 1].expand(-1, count)
        self._tokens = _insert(names, place, self._start).to(weight.device)
        self._mask = _insert(mask, torch.ones_like(place, dtype=torch.bool), self._start).to(weight.device)

    def class_vectors(self) -> Tensor:
        """Return the unit vectors of the classes, (K, E), with gradients for the contexts only."""
        start, stop = self._start, self._start + self.contexts.shape[-2]

        def replace(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:  # output is (K, S, D)
            contexts = self.contexts.to(output.dtype).expand(len(output), -1, -1)
            return torch.cat((output[:, :start], contexts, output[:, stop:]), dim=1)

        hook = self.network.token_embedding.register_forward_hook(replace)
        try:
            vectors: Tensor = self.network.encode_tokens(self._tokens, self._mask)
        finally:
            hook.remove()
        return vectors


def room_for_contexts(network: Any, classes: Sequence[str]) -> int:
    """Return the largest M with which the prompts of these classes fit; 0 or less if no context does."""
    return int(network.context_length - network.tokenize([f"{name}." for name in classes])[0].shape[1])


def paper_epochs(shots: int) -> int:
    """Return the paper's number of epochs (section 4.1) at k images a class: 50 at 1, 100 up to 4, 200 above."""
    return 50 if shots <= 1 else 100 if shots <= 4 else 200


def learn_contexts(
    prompts: LearnedPrompts,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> list[float]:
    """Learn the contexts of prompts by cross entropy over the classes' vectors.

    SGD, momentum 0.9, weight decay 5e-4; the first epoch has a learning rate of 1e-5, then it falls by a cosine.
    Source: Zhou et al. 2022, arXiv:2109.01134, Eq. 3 and section 4.1. Unlike the paper: images are not augmented.
    The same arguments give the same contexts, to the last bit on the CPU.

    Args:
        prompts: changed in place.
        images: (N, E) unit vectors.
        labels: (N,) int64, 0 to K - 1.
        epochs: passes over the images, see `paper_epochs`.
        lr: of the second epoch.
        batch_size: images a step.
        seed: of the images' order, in [0, 2**64).

    Returns:
        The mean loss of each epoch, in nats.
    """
    device = prompts.contexts.device
    images, labels = images.to(device).float(), labels.to(device)
    scale = prompts.network.similarity.scale.detach()
    optimizer = torch.optim.SGD([prompts.contexts], lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            cosine = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
            group["lr"] = cosine if epoch else min(lr, FIRST_EPOCH_LR)
        order = torch.from_numpy(_random(seed, epoch + 1).permutation(len(images))).to(device)
        total = 0.0
        for rows in order.split(batch_size):
            loss = F.cross_entropy(scale * images[rows] @ prompts.class_vectors().T, labels[rows])
            (prompts.contexts.grad,) = torch.autograd.grad(loss, [prompts.contexts])
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(images))
    return losses


def _random(seed: int, stream: int) -> np.random.Generator:
    """Return random numbers of a seed: stream 0 for the contexts, epoch + 1 for the order of an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, _DOMAIN], counter=[0, 0, stream, 0]))


def _common_start(tokens: Tensor, empty: Tensor) -> int:
    """Return 1 if texts begin with a start token, as the empty text does, else 0."""
    return int(empty.shape[1] > 0 and bool((tokens[:, :1] == empty[0, 0]).all()))


def _insert(rows: Tensor, columns: Tensor, start: int) -> Tensor:
    """Return rows (K, S) with columns (K, M) inserted before column `start`: (K, M + S)."""
    return torch.cat((rows[:, :start], columns, rows[:, start:]), dim=1)

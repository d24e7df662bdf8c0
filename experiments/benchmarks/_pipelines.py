"""Pipelines of the data benchmark: JPEG bytes to two SimCLR views (Chen et al. 2020, App. A) with different libraries.

All draw from the same distributions: crop area (0.08, 1), flip 0.5, jitter 0.8 (0.8, 0.8, 0.8, 0.2), grayscale 0.2,
blur 0.5 with sigma (0.1, 2). Each is written as is fastest with its library.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image

from lit_vision.data.batch import normalize
from lit_vision.data.views.albumentations_views import import_albumentations
from lit_vision.data.views.views import make_views

SIZE = 224
Pipeline = Callable[[bytes, int], object]  # (JPEG, number of the call)


def with_lit_vision(name: str = "simclr", **options: object) -> Pipeline:
    """Return our pipeline for a view, with its options."""
    views = make_views(name, SIZE, 0, **options)
    return lambda data, i: views(data, 0, i)


def with_albumentations(lean: bool = False) -> Pipeline:
    """Return the pipeline of cv2 and albumentations.

    Args:
        lean: bilinear resize and the smallest kernel that sigma allows, instead of the paper's bicubic and 23 pixels.
    """
    A = import_albumentations()
    crop = {"interpolation": cv2.INTER_LINEAR if lean else cv2.INTER_CUBIC}
    kernel = 0 if lean else (23, 23)
    pipeline = A.Compose(
        [
            A.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0), **crop),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=kernel, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )

    def run(data: bytes, _: int) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return np.stack([pipeline(image=image)["image"] for _ in range(2)])

    return run


def with_torchvision_pil() -> Pipeline:
    """Return the pipeline of torchvision's first transforms on PIL images."""
    from torchvision import transforms as T

    view = T.Compose(
        [
            T.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )

    def run(data: bytes, _: int) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.stack([np.asarray(view(image)) for _ in range(2)])

    return run


def with_torchvision_v2() -> Pipeline:
    """Return the pipeline of torchvision's decoder and transforms.v2 on tensors."""
    from torchvision.io import decode_jpeg
    from torchvision.transforms import v2 as T

    view = T.Compose(
        [
            T.RandomResizedCrop(SIZE, (0.08, 1.0), antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )

    def run(data: bytes, _: int) -> torch.Tensor:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return torch.stack([view(image) for _ in range(2)])

    return run


def with_lightly(floats: bool = False) -> Pipeline:
    """Return lightly's transform.

    Args:
        floats: end at normalized tensors as it does by default; False leaves these last steps out.
    """
    from lightly.transforms.simclr_transform import SimCLRTransform

    transform = SimCLRTransform(input_size=SIZE)
    if not floats:
        for view in transform.transforms:
            steps = view.transform.transforms
            ends = [i for i, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "Normalize")]
            if ends:  # the two views share one list: done already for the second one
                view.transform.transforms = steps[: ends[0]]

    def run(data: bytes, _: int):
        views = transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return views if floats else np.stack([np.asarray(view) for view in views])

    return run


def as_floats(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that ends at normalized float tensors, channels first."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def run(data: bytes, i: int) -> torch.Tensor:
        views = torch.as_tensor(pipeline(data, i))
        if views.shape[-1] != 3:
            views = views.permute(0, 2, 3, 1)
        return normalize(views[None], mean, std)

    return run


def decode_cv2(data: bytes, _: int) -> np.ndarray:
    """Decode with OpenCV."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def decode_simplejpeg(data: bytes, _: int) -> np.ndarray:
    """Decode with simplejpeg."""
    return simplejpeg.decode_jpeg(data, "RGB")


def decode_entropy(data: bytes, _: int) -> np.ndarray:
    """Decode to gray at an eighth of the size: entropy decoding and little else, a bound for any decoder."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    return simplejpeg.decode_jpeg(data, "GRAY", min_height=-(-height // 8), min_width=-(-width // 8))

"""Create timm models, with errors that say what to change."""

from __future__ import annotations

import contextlib
import difflib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import timm
from torch import nn

from lit_vision.data.views.image_size import ImageSize, plain_size, size_text
from lit_vision.errors import UserError


class WeightsUnavailableError(UserError):
    """timm's weights are not on this machine and cannot be fetched."""


def lists_to_tuples(value: Any) -> Any:
    """Return `value` with every list in it, at any depth, as a tuple; timm's constructors expect tuples."""
    return tuple(lists_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def has_fixed_size(name: str) -> bool:
    """Return True for timm's name of a model that is built for images of one size, such as a ViT."""
    return bool(getattr(timm.get_pretrained_cfg(name.split(".")[0]), "fixed_input_size", False))


def create_timm_model(name: str, pretrained: bool, img_size: ImageSize | None, arguments: dict[str, Any]) -> nn.Module:
    """Call timm.create_model and turn what it raises into errors that name the key and what to do.

    Args:
        name: of the model, as timm lists it, with or without a weight tag.
        pretrained: load timm's weights.
        img_size: of the images, pixels; passed on to models that are built for one size.
        arguments: further arguments of timm's constructor.

    Raises:
        UserError: unknown name (with close ones), or an argument that the model does not take.
        WeightsUnavailableError: the weights cannot be fetched.
    """
    remote = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    base = name.split(".")[0]
    if not remote and not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() gives all names"
        raise UserError(f"backbone: timm {timm.__version__} has no model {name!r}; {hint}")
    if img_size is not None and (remote or has_fixed_size(name)):
        arguments = {**arguments, "img_size": lists_to_tuples(plain_size(img_size))}
    try:
        with _hub_offline_if_unreachable() if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        unknown = str(error).split("'")[1] if "unexpected keyword" in str(error) else None
        if unknown is None:
            raise
        unknown = {"global_pool": "pool"}.get(unknown, unknown)
        raise UserError(f"backbone_args.{unknown}: {name} takes no such argument; leave it out") from error
    except AssertionError as error:
        raise UserError(f"backbone_args: {name} does not accept them: {error}; change the value") from error
    except OSError as error:
        if not pretrained:
            raise
        raise WeightsUnavailableError(
            f"pretrained: the weights of {name} are not on this machine and cannot be fetched (no network?); "
            "connect once, or use pretrained=false"
        ) from error
    except RuntimeError as error:
        if "pretrained" in str(error).lower():  # a weight tag is looked up even where no weights are loaded
            tags = ", ".join(timm.list_pretrained(f"{base}.*")[:4]) or "none"
            key = "pretrained" if pretrained and "tag" not in str(error) else "backbone"
            text = str(error).rstrip(".")
            raise UserError(
                f"{key}: {text} (has: {tags}); choose one of these, or {base} with pretrained=false"
            ) from error
        raise


@contextlib.contextmanager
def _hub_offline_if_unreachable() -> Iterator[None]:
    """Set the hub's client to offline if its host is unreachable.

    It then reads its cache at once instead of retrying for a minute.
    """
    from huggingface_hub import constants

    previous = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = previous


def patch_side(model: nn.Module) -> int:
    """Return the side of a ViT's patches, pixels; 1 for a model without patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return max(patch) if isinstance(patch, tuple) else 1


def check_patches(model: nn.Module) -> None:
    """Refuse an image size that is no multiple of the patch size.

    Raises:
        UserError: img_size, with both numbers.
    """
    embed = getattr(model, "patch_embed", None)
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if size and patch and any(s % p for s, p in zip(size, patch)):  # timm would leave out the last rows silently
        raise UserError(
            f"img_size: {size_text(size)} pixels are no multiple of the patch size {patch[0]}; change one of them"
        )


def feature_strides(model: nn.Module) -> list[int]:
    """Return the stride of each of the model's feature maps, fine to coarse; empty if timm lists none."""
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info) or []
    return [int(entry["reduction"]) for entry in info]

"""Parts of each layout, and from them the keys that may be missing or unused when its weights are loaded into a module.

A part is a module at the top of a checkpoint: `backbone`, `decoder`, ... Source and target share the backbone, and all
parts that both have if the source holds a model of the target's method. Other parts of the source may be dropped, other
parts of the target keep their initial values. Every further key that differs is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from lit_vision.errors import UserError
from lit_vision.weights.vit_key_maps import CLIP_UNUSED, DINOV2_UNUSED

BACKBONE = "Backbone"
CLASSIFIER = "<classifier>"  # timm's classifier; its name depends on the family (fc, head, head.fc, classifier)
FACEBOOK_MAE = "facebookresearch/mae"
TORCHVISION, TRANSFORMERS = "torchvision (ViT)", "transformers (ViT-MAE)"
LIGHTLY_SIMCLR, LIGHTLY_MAE = "lightly (SimCLR)", "lightly (MAE)"
MOBILENET, EFFICIENTNET_LITE = "torchvision (MobileNetV2)", "EfficientNet-Lite"
DINOV2, CLIP = "DINOv2", "CLIP (image tower)"
UNKNOWN = "an unknown method"  # beginning of the layout of a checkpoint in our form whose method is not known


class GeneratorFileError(UserError):
    """A generator's file, where a model with a backbone is asked for."""


@dataclass(frozen=True)
class Layout:
    """Content of a file.

    Attributes:
        parts: the modules in it, in the common form.
        method: the method whose parts they are; "" if only the backbone can be shared.
        marks: hyper-parameters that together only this method has; they identify its checkpoints.
        unused: patterns of further keys that no target takes.
    """

    parts: frozenset[str]
    method: str = ""
    marks: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def _own(method: str, parts: str, marks: str) -> Layout:
    return Layout(frozenset(parts.split()), method, frozenset(marks.split()))


def _foreign(parts: str, method: str = "", *unused: str) -> Layout:
    return Layout(frozenset(parts.split()), method, unused=unused)


# methods of this project, one line each; a test compares the parts with those that network.py declares
METHODS = {
    "MAE": _own("MAE", "backbone decoder", "mask_ratio decoder_width"),
    "SimCLR": _own("SimCLR", "backbone projection", "temperature projection_width"),
    "LeJEPA": _own("LeJEPA", "backbone projection", "sigreg_weight projection_width"),
    "Detector": _own("Detector", "backbone pyramid head", "pyramid_width head_convs"),
    "Segmenter": _own("Segmenter", "backbone pyramid head auxiliary", "aux_weight background"),
    # before Classifier, whose marks it has too
    "VideoClassifier": _own("VideoClassifier", "backbone temporal head", "num_classes temporal"),
    "Classifier": _own("Classifier", "backbone head head_norm", "num_classes tune"),
    "MultiLabelClassifier": _own("MultiLabelClassifier", "backbone head", "num_labels tune"),
    "Restorer": _own("Restorer", "backbone pixels", "degradations scale"),
    "ImageText": _own(
        "ImageText", "backbone image_projection text text_projection similarity", "lock_image embed_width"
    ),
    "Captioner": _own("Captioner", "backbone image_prefix caption_decoder", "prefix_grid beams"),
    # generators have no backbone, so nothing else takes their weights, and they take no other
    "FlowMatching": _own("FlowMatching", "unet", "class_dropout patch_size"),
    "GAN": _own("GAN", "generator discriminator", "noise_width r1_gamma"),
}
# "Dense": Detector and Segmenter, whose heads nothing else takes
DENSE = Layout(METHODS["Detector"].parts | METHODS["Segmenter"].parts)
LAYOUTS: Mapping[str, Layout] = {
    **{name: layout for name, layout in METHODS.items() if name not in ("Detector", "Segmenter")},
    "Dense": DENSE,
    BACKBONE: _foreign("backbone"),
    "timm": _foreign(f"backbone {CLASSIFIER}"),
    "timm (classifier)": _foreign("backbone head", "Classifier"),
    f"{FACEBOOK_MAE} (encoder)": _foreign("backbone"),
    f"{FACEBOOK_MAE} (full)": _foreign("backbone decoder", "MAE"),
    f"{FACEBOOK_MAE} (fine-tuned)": _foreign("backbone head", "Classifier"),
    TORCHVISION: _foreign("backbone head", "Classifier"),
    TRANSFORMERS: _foreign("backbone decoder", "MAE"),
    MOBILENET: _foreign("backbone head", "Classifier"),
    EFFICIENTNET_LITE: _foreign("backbone head", "Classifier"),
    DINOV2: _foreign("backbone", "", *DINOV2_UNUSED),
    CLIP: _foreign("backbone", "", *CLIP_UNUSED),
    # lightly: other methods than MAE use the encoder's `mask_token`; no method uses the ViT's classifier
    LIGHTLY_MAE: _foreign("backbone decoder", "MAE", "backbone.mask_token", "backbone.head.*"),
    LIGHTLY_SIMCLR: _foreign("backbone projection online_classifier"),
}
# (part of the source, part of the target): refused, since a training does not start from a later or another kind of one
_REFUSED = {("projection", "decoder"), ("head", "decoder"), ("head", "projection"), ("pyramid", "pyramid")}
_ALLOWED = {(TORCHVISION, "MAE")}  # all the same: its ViT has no other form than with a classifier
# i of keys `projection.<i>.*` of a file without hyper-parameters: SimCLR has 1 to 3 layers, with batch norm or without
_PROJECTIONS = {(0,): "SimCLR", (0, 2): "SimCLR", (0, 2, 4): "SimCLR", (0, 1): "SimCLR", (0, 1, 3, 4): "SimCLR"}
_PROJECTIONS |= {(0, 1, 3, 4, 6, 7): "SimCLR", (0, 1, 3, 4, 6): "LeJEPA"}


def allowed_mismatch(
    layout: str, target: str, target_parts: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return patterns of keys of the source that may be unused, and of keys of the target that may keep their values.

    Args:
        layout: of the source, a name of LAYOUTS.
        target: name of the target's method, or "Backbone".
        target_parts: its parts.

    Returns:
        The patterns, in which CLASSIFIER stands for the names of timm's classifier; None if the pair is refused.
    """
    source = LAYOUTS[layout]
    if "backbone" not in source.parts & target_parts:
        return None
    refused = any((a, b) in _REFUSED for a in source.parts for b in target_parts)
    if refused and source.method != target and (layout, target) not in _ALLOWED:
        return None
    shared = source.parts & target_parts if source.method == target else {"backbone"}
    drop = (*source.unused, *(f"{part}.*" for part in sorted(source.parts - shared)))
    return drop, tuple(f"{part}.*" for part in sorted(target_parts - shared))


def known_targets(layout: str) -> list[str]:
    """Return the names of this project's methods, and "Backbone", that weights of a layout can be loaded into."""
    targets = {**{name: method.parts for name, method in METHODS.items()}, BACKBONE: LAYOUTS[BACKBONE].parts}
    return [name for name, parts in targets.items() if allowed_mismatch(layout, name, parts) is not None]


def identify_method(keys: Iterable[str], declared: str, hyper_parameters: Iterable[str]) -> str:
    """Return the layout of a file in this project's form.

    What the file states decides: the method's name, else its hyper-parameters, if it has no part that this method does
    not have: a new method often begins as a copy of another one's constructor. A file with neither is known by its
    parts, and SimCLR's by the layers of its projection as well, since other methods have a part of that name too.

    Args:
        keys: of the tensors, in the common form.
        declared: the method that the file names; "" if none.
        hyper_parameters: names of those in the file; none if it has none.

    Returns:
        A name of LAYOUTS, or a text that begins with UNKNOWN and lists the parts.
    """
    keys, given = list(keys), set(hyper_parameters)
    parts = {key.split(".")[0] for key in keys} - {"mean", "std"}
    unknown = f"{UNKNOWN} (parts {', '.join(sorted(parts))})"
    if declared and declared not in (*METHODS, BACKBONE):
        return f"{unknown.removesuffix(')')}; it names {declared})"
    if declared:
        found = declared
    elif parts == {"backbone"}:
        found = BACKBONE
    elif given:
        found = method_of_hyper_parameters(given, parts) or unknown
    elif parts == {"backbone", "projection"}:
        layers = {key.split(".")[1] for key in keys if key.startswith("projection.")}
        found = _PROJECTIONS.get(tuple(sorted(int(i) for i in layers if i.isdecimal())), unknown)
    else:
        fitting = [name for name in METHODS if parts <= METHODS[name].parts]
        found = "Classifier" if "Classifier" in fitting else next(iter(fitting), unknown)
    return "Dense" if found in ("Detector", "Segmenter") else found


def method_of_hyper_parameters(names: Iterable[str], parts: Set[str] = frozenset()) -> str | None:
    """Return the method of this project that a checkpoint with hyper-parameters of these names is of, None if none.

    A method without one of the checkpoint's `parts` does not count.
    """
    given = set(names)
    return next((name for name, method in METHODS.items() if method.marks <= given and parts <= method.parts), None)


def unknown_method_error(path: object, layout: str) -> UserError:
    """Return the error for a checkpoint whose layout begins with UNKNOWN; it offers the backbone alone."""
    return UserError(
        f"{path}: is a checkpoint of {layout}; its backbone alone can be used: lit-vision import {path} "
        "--backbone_only --out backbone.safetensors"
    )


def check_has_backbone(declared: str, hyper_parameters: Iterable[str], where: str = "") -> None:
    """Refuse a file of a method without a backbone, where a backbone is asked for.

    Args:
        declared: the method that the file names; "" if none.
        hyper_parameters: names of those in the file.
        where: begins the message, with a colon.

    Raises:
        GeneratorFileError: the file holds a generator.
    """
    method = declared or method_of_hyper_parameters(hyper_parameters)
    if method in METHODS and "backbone" not in METHODS[method].parts:
        raise GeneratorFileError(
            f"{where}is a checkpoint of {method}, which makes images and has no backbone; "
            "lit-vision generate --model takes it"
        )

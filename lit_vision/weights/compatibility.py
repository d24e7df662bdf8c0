"""What may be left over when a file of one layout is loaded into a module: written down for each pair, and nothing else may."""

from lit_vision.weights.checkpoint_layouts import FB
from lit_vision.weights.key_maps import LIGHTLY_MAE, LIGHTLY_SIMCLR, TORCHVISION, TRANSFORMERS

# (source layout, target): keys of the source that may be dropped, keys of the target that may start anew.
# "<classifier>" stands for the names of timm's own classifier in the target's family (fc, head, head.fc, classifier).
_DECODER, _PROJECTION, _HEAD = ("decoder.*",), ("projection.*",), ("head.*", "head_norm.*")
_DENSE = ("pyramid.*", "auxiliary.*", "head.*")  # of Detector and Segmenter
_UNUSED = ("backbone.mask_token",)
ALLOWED_MISMATCHES: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("MAE", "MAE"): ((), ()),
    ("MAE", "SimCLR"): (_DECODER, _PROJECTION),
    ("MAE", "Classifier"): (_DECODER, _HEAD),
    ("MAE", "Backbone"): (_DECODER, ()),
    ("SimCLR", "SimCLR"): ((), ()),
    ("SimCLR", "Classifier"): (_PROJECTION, _HEAD),
    ("SimCLR", "Backbone"): (_PROJECTION, ()),
    ("Classifier", "Classifier"): ((), ()),
    ("Classifier", "Backbone"): (_HEAD, ()),
    ("Dense", "Classifier"): (_DENSE, _HEAD),
    ("Dense", "Backbone"): (_DENSE, ()),
    ("Backbone", "MAE"): ((), _DECODER),
    ("Backbone", "SimCLR"): ((), _PROJECTION),
    ("Backbone", "Classifier"): ((), _HEAD),
    ("Backbone", "Backbone"): ((), ()),
    ("timm", "MAE"): (("<classifier>",), _DECODER),
    ("timm", "SimCLR"): (("<classifier>",), _PROJECTION),
    ("timm", "Classifier"): (("<classifier>",), _HEAD),
    ("timm", "Backbone"): (("<classifier>",), ()),
    (f"{FB} (encoder)", "MAE"): ((), _DECODER),
    (f"{FB} (encoder)", "Classifier"): ((), _HEAD),
    (f"{FB} (encoder)", "Backbone"): ((), ()),
    (f"{FB} (full)", "MAE"): ((), ()),
    (f"{FB} (full)", "Classifier"): (_DECODER, _HEAD),
    (f"{FB} (full)", "Backbone"): (_DECODER, ()),
    (f"{FB} (fine-tuned)", "Classifier"): ((), ("head_norm.*",)),
    (f"{FB} (fine-tuned)", "Backbone"): (_HEAD, ()),
    ("timm (classifier)", "Classifier"): ((), ("head_norm.*",)),
    (TORCHVISION, "MAE"): (_HEAD, _DECODER),
    (TORCHVISION, "Classifier"): ((), ("head_norm.*",)),
    (TORCHVISION, "Backbone"): (_HEAD, ()),
    (TRANSFORMERS, "MAE"): ((), ()),
    (TRANSFORMERS, "Classifier"): (_DECODER, _HEAD),
    (TRANSFORMERS, "Backbone"): (_DECODER, ()),
    # lightly: `mask_token` of its encoder is used by other methods, the ViT's own classifier by none
    (LIGHTLY_MAE, "MAE"): ((*_UNUSED, "backbone.head.*"), ()),
    (LIGHTLY_MAE, "Classifier"): ((*_UNUSED, *_DECODER, "backbone.head.*"), _HEAD),
    (LIGHTLY_MAE, "Backbone"): ((*_UNUSED, "decoder*", "backbone.head.*"), ()),
    (LIGHTLY_SIMCLR, "Classifier"): ((*_PROJECTION, "online_classifier.*"), _HEAD),
    (LIGHTLY_SIMCLR, "Backbone"): ((*_PROJECTION, "online_classifier.*"), ()),
}

"""Keys that may be missing or unused when weights of one layout are loaded into a module, per source and target."""

from lit_vision.weights.checkpoint_layouts import FACEBOOK_MAE
from lit_vision.weights.key_maps import LIGHTLY_MAE, LIGHTLY_SIMCLR, TORCHVISION, TRANSFORMERS

# (source layout, target): keys of the source that may be unused, keys of the target that may keep their initial values.
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
    (f"{FACEBOOK_MAE} (encoder)", "MAE"): ((), _DECODER),
    (f"{FACEBOOK_MAE} (encoder)", "Classifier"): ((), _HEAD),
    (f"{FACEBOOK_MAE} (encoder)", "Backbone"): ((), ()),
    (f"{FACEBOOK_MAE} (full)", "MAE"): ((), ()),
    (f"{FACEBOOK_MAE} (full)", "Classifier"): (_DECODER, _HEAD),
    (f"{FACEBOOK_MAE} (full)", "Backbone"): (_DECODER, ()),
    (f"{FACEBOOK_MAE} (fine-tuned)", "Classifier"): ((), ("head_norm.*",)),
    (f"{FACEBOOK_MAE} (fine-tuned)", "Backbone"): (_HEAD, ()),
    ("timm (classifier)", "Classifier"): ((), ("head_norm.*",)),
    (TORCHVISION, "MAE"): (_HEAD, _DECODER),
    (TORCHVISION, "Classifier"): ((), ("head_norm.*",)),
    (TORCHVISION, "Backbone"): (_HEAD, ()),
    (TRANSFORMERS, "MAE"): ((), ()),
    (TRANSFORMERS, "Classifier"): (_DECODER, _HEAD),
    (TRANSFORMERS, "Backbone"): (_DECODER, ()),
    # lightly: other methods than MAE use the encoder's `mask_token`; no method uses the ViT's classifier
    (LIGHTLY_MAE, "MAE"): ((*_UNUSED, "backbone.head.*"), ()),
    (LIGHTLY_MAE, "Classifier"): ((*_UNUSED, *_DECODER, "backbone.head.*"), _HEAD),
    (LIGHTLY_MAE, "Backbone"): ((*_UNUSED, "decoder*", "backbone.head.*"), ()),
    (LIGHTLY_SIMCLR, "Classifier"): ((*_PROJECTION, "online_classifier.*"), _HEAD),
    (LIGHTLY_SIMCLR, "Backbone"): ((*_PROJECTION, "online_classifier.*"), ()),
}

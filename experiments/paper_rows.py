"""What the papers' tables ask for: each row's recipes and flags, what the paper and others report, and the data. Used by paper_tables.py.

Numbers: He et al. 2022 (arXiv:2111.06377), Chen et al. 2020 (arXiv:2002.05709), and the named projects' own tables of results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RUNS = "runs/paper"
IMAGENET = "data/imagenet: ImageNet-1k as train/<1000 classes>/ (1,281,167 images) and val/<1000 classes>/ (50,000)"


@dataclass(frozen=True)
class Stage:
    """One training run: a recipe, flags, and the stage whose encoder it begins with."""

    recipe: str  # under experiments/, without .yaml
    flags: str = ""
    start: Stage | None = None
    name: str = ""

    @property
    def folder(self) -> str:
        """The run's folder; the same for two rows that share a stage."""
        own = self.name or self.recipe.split("/")[-1]
        return f"{RUNS}/{own}" if self.start is None else f"{self.start.folder}--{own}"

    @property
    def command(self) -> str:
        """What a person would type; repeated, it goes on where it stopped."""
        begin = f" --model.backbone_checkpoint {self.start.folder}/checkpoints/last.ckpt" if self.start else ""
        flags = f" {self.flags}" if self.flags else ""
        return f"lit-vision fit --config experiments/{self.recipe}.yaml{flags}{begin} --run_dir {self.folder} --resume auto"


@dataclass(frozen=True)
class Line:
    """A row: its stages in order, further commands, the file that holds its result, and what others report (fractions)."""

    name: str
    stages: tuple[Stage, ...]
    paper: float | None = None
    peers: str = ""
    after: str = ""  # a command that measures the last stage, or uses its encoder
    result: str = ""  # results.json of the last stage if empty

    @property
    def commands(self) -> list[str]:
        """In order, the shared ones too."""
        return [stage.command for stage in self.stages] + ([self.after] if self.after else [])

    @property
    def result_file(self) -> str:
        """Where the number is, once it was measured."""
        return self.result or f"{self.stages[-1].folder}/results.json"


@dataclass(frozen=True)
class PaperTable:
    """Rows, the folders and files that they read, and a note under the table."""

    title: str
    lines: tuple[Line, ...]
    data: dict[str, str] = field(default_factory=lambda: {"data/imagenet/train": IMAGENET})
    note: str = ""


def _pair(stage: Stage, recipe: str, flags: str = "", name: str = "") -> tuple[Stage, Stage]:
    return stage, Stage(recipe, flags, stage, name)


# ---- MAE

VITS = {"ViT-B": "vitb16", "ViT-L": "vitl16", "ViT-H": "vith14"}
NAMES = {"ViT-B": "vit_base_patch16_224", "ViT-L": "vit_large_patch16_224", "ViT-H": "vit_huge_patch14_224"}
TUNE = {
    "ViT-B": "vitb16_in1k_100ep_finetune",
    "ViT-L": "vitl16_in1k_50ep_finetune",
    "ViT-H": "vith14_in1k_50ep_finetune",
}
PRETRAINED = {vit: Stage(f"mae/{key}_in1k_1600ep") for vit, key in VITS.items()}
SHORT = {
    vit: Stage(f"mae/{key}_in1k_1600ep", "--trainer.max_epochs 800", name=f"{key}_in1k_800ep")
    for vit, key in VITS.items()
}
PAPER_FT = {"ViT-B": 0.836, "ViT-L": 0.859, "ViT-H": 0.869}
PEERS_FT = {
    "ViT-B": "MMPreTrain 83.5; FINETUNE.md's seeds 83.57 ± 0.08; MoCo v3 83.2, BEiT 83.2, DINO 82.8 (paper)",
    "ViT-L": "MMPreTrain 85.7; FINETUNE.md's seeds 85.87 ± 0.07; MoCo v3 84.1, BEiT 85.2 (paper)",
    "ViT-H": "MMPreTrain 86.9; FINETUNE.md's checkpoint 86.93",
}
SCRATCH = {"ViT-B": 0.823, "ViT-L": 0.826, "ViT-H": 0.831}


def _scratch(vit: str) -> Stage:
    wider = "--model.backbone_args '{pool: avg, drop_path_rate: 0.2}' --trainer.max_epochs 200"
    flags = "" if vit == "ViT-B" else f"--model.backbone {NAMES[vit]} {wider}"
    return Stage("mae/vitb16_in1k_300ep_scratch", flags, name=f"{VITS[vit]}_in1k_scratch")


MAE_FINETUNE = PaperTable(
    "MAE, fine-tuning on ImageNet-1k, top-1 (He et al. 2022, Table 3)",
    (
        *(
            Line(f"{v}, from scratch", (_scratch(v),), SCRATCH[v], "MMPreTrain 82.37" if v == "ViT-B" else "")
            for v in VITS
        ),
        *(
            Line(
                f"{v}, 1600 epochs, repository's values",
                _pair(PRETRAINED[v], f"mae/{TUNE[v]}"),
                PAPER_FT[v],
                PEERS_FT[v],
            )
            for v in VITS
        ),
        *(Line(f"{v}, 1600 epochs, paper's values", _pair(PRETRAINED[v], f"mae/{TUNE[v]}_paper")) for v in VITS),
        Line(
            "ViT-B, 800 epochs, repository's values",
            _pair(SHORT["ViT-B"], f"mae/{TUNE['ViT-B']}"),
            None,
            "MMPreTrain 83.3",
        ),
        Line(
            "ViT-L, 800 epochs, repository's values",
            _pair(SHORT["ViT-L"], f"mae/{TUNE['ViT-L']}"),
            0.854,
            "MMPreTrain 85.4; authors' rerun 85.5",
        ),
    ),
    note="The authors' numbers come from the repository's values (FINETUNE.md). ViT-H at 448 pixels (87.8) is not scripted: the paper gives no schedule for it.",
)


def _probe(vit: str, stage: Stage) -> tuple[Stage, Stage]:
    flags = "" if vit == "ViT-B" else f"--model.backbone {NAMES[vit]} --trainer.max_epochs 50"
    return _pair(stage, "mae/vitb16_in1k_90ep_linear", flags, name="linear")


MAE_LINEAR = PaperTable(
    "MAE, linear probe on ImageNet-1k, top-1 (He et al. 2022, section 4 and Table 10)",
    (
        Line(
            "ViT-B, 1600 epochs",
            _probe("ViT-B", PRETRAINED["ViT-B"]),
            0.680,
            "PyTorch repository 67.8; MMPreTrain 67.1; a user of the official code 66.9",
        ),
        Line(
            "ViT-L, 1600 epochs",
            _probe("ViT-L", PRETRAINED["ViT-L"]),
            0.758,
            "PyTorch repository 76.0; MMPreTrain 75.5; MoCo v3 77.6",
        ),
        Line("ViT-H, 1600 epochs", _probe("ViT-H", PRETRAINED["ViT-H"]), 0.766, "PyTorch repository 77.2"),
        Line("ViT-B, 800 epochs", _probe("ViT-B", SHORT["ViT-B"]), None, "MMPreTrain 65.1"),
        Line("ViT-L, 800 epochs", _probe("ViT-L", SHORT["ViT-L"]), 0.739, "MMPreTrain 73.7"),
    ),
    note="lightly: 46.0 for ViT-B after 100 epochs at batch 256 on raw pixels, which none of these rows is.",
)

# Table 1's rows that MAE's arguments vary: (name, flags, fine-tune, linear)
ABLATIONS = (
    ("default (decoder 8 x 512, raw pixels)", "", 0.849, 0.735),
    ("decoder depth 1", "--model.decoder_depth 1", 0.848, 0.655),
    ("decoder depth 2", "--model.decoder_depth 2", 0.849, 0.700),
    ("decoder depth 4", "--model.decoder_depth 4", 0.849, 0.719),
    ("decoder depth 12", "--model.decoder_depth 12", 0.844, 0.733),
    ("decoder width 128", "--model.decoder_width 128", 0.849, 0.691),
    ("decoder width 256", "--model.decoder_width 256", 0.848, 0.713),
    ("decoder width 768", "--model.decoder_width 768", 0.844, 0.731),
    ("decoder width 1024", "--model.decoder_width 1024", 0.843, 0.731),
    ("normalised pixels", "--model.norm_pix_loss true", 0.854, 0.739),
    ("no augmentation", "--data.train_view eval", 0.840, 0.657),
)


def _ablations() -> tuple[Line, ...]:
    lines = []
    for name, flags, tuned, linear in ABLATIONS:
        raw = "" if "norm_pix" in flags else "--model.norm_pix_loss false "
        slug = "ablation-" + name.split(" (")[0].replace(" ", "-")
        stage = Stage("mae/vitl16_in1k_1600ep", f"--trainer.max_epochs 800 {raw}{flags}".strip(), name=slug)
        if "norm_pix" in flags:
            stage = SHORT["ViT-L"]
        lines.append(Line(f"{name}: fine-tune", _pair(stage, f"mae/{TUNE['ViT-L']}_paper"), tuned))
        lines.append(Line(f"{name}: linear", _probe("ViT-L", stage), linear))
    return tuple(lines)


MAE_ABLATION = PaperTable(
    "MAE, ablations, ViT-L/16, 800 epochs, ImageNet-1k, top-1 (He et al. 2022, Table 1)",
    _ablations(),
    note="Not here, since MAE has no argument for them: mask tokens in the encoder (84.2 / 59.6), PCA and dVAE targets, block and grid masks. "
    "The mask ratio (figure 5) is table-mae-mask-ratio.",
)

# ---- SimCLR

SIMCLR = {
    ep: Stage(
        "simclr/resnet50_in1k_1000ep",
        "" if ep == 1000 else f"--trainer.max_epochs {ep}",
        name=f"simclr_resnet50_in1k_{ep}ep",
    )
    for ep in (100, 200, 400, 800, 1000)
}
LINEAR_4096 = {100: 0.646, 200: 0.665, 400: 0.682, 800: 0.689, 1000: 0.693}
LINEAR_PEERS = {
    100: "the authors' README about 64.5",
    200: "MMPreTrain 66.9",
    800: "MMPreTrain 69.2; bolts 68.4",
    1000: "released checkpoint 69.1",
}
# batch: (nodes, batch per device, 0.075 x sqrt(batch), top-1 of that rule after 100 epochs)
BATCHES = {
    256: (1, 32, 1.2, 0.628),
    512: (1, 64, 1.697, 0.638),
    1024: (1, 128, 2.4, 0.643),
    2048: (2, 128, 3.394, 0.647),
    8192: (8, 128, 6.788, 0.648),
}
WIDE = "--model.backbone_args '{{channels: {}}}'"
WIDTHS = {"2x": (WIDE.format([128, 256, 512, 1024]), 0.742), "4x": (WIDE.format([256, 512, 1024, 2048]), 0.765)}


def _linear(stage: Stage, flags: str = "") -> tuple[Stage, Stage]:
    return _pair(stage, "simclr/resnet50_in1k_90ep_linear", flags, name="linear")


def _batch(size: int) -> Line:
    nodes, per_device, lr, top1 = BATCHES[size]
    flags = f"--trainer.max_epochs 100 --trainer.num_nodes {nodes} --data.batch_size {per_device} --model.lr {lr}"
    stage = Stage("simclr/resnet50_in1k_1000ep", flags, name=f"simclr_resnet50_in1k_100ep_batch{size}")
    peers = "lightly 63.2" if size == 256 else ""
    return Line(f"ResNet-50, 100 epochs, batch {size}, lr {lr:g}", _linear(stage), top1, peers)


SIMCLR_LINEAR = PaperTable(
    "SimCLR, linear evaluation on ImageNet-1k, top-1 (Chen et al. 2020, Tables 6 and B.1)",
    (
        *(
            Line(f"ResNet-50, {ep} epochs, batch 4096", _linear(stage), LINEAR_4096[ep], LINEAR_PEERS.get(ep, ""))
            for ep, stage in SIMCLR.items()
        ),
        *(_batch(size) for size in BATCHES),
        *(
            Line(
                f"ResNet-50 ({width}), 1000 epochs, batch 4096",
                _linear(
                    Stage("simclr/resnet50_in1k_1000ep", flags, name=f"simclr_resnet50_{width}_in1k_1000ep"), flags
                ),
                top1,
                "released checkpoint 74.2" if width == "2x" else "released checkpoint 76.6",
            )
            for width, (flags, top1) in WIDTHS.items()
        ),
    ),
    note="The wider networks keep a stem of 64 channels here (2x: 93.86 M instead of 93.91 M parameters).",
)

SIMCLR_SEMI = PaperTable(
    "SimCLR, fine-tuning with few of ImageNet-1k's labels, top-1 (Chen et al. 2020, Table 7)",
    (
        Line(
            "ResNet-50, 1 %",
            _pair(SIMCLR[1000], "simclr/resnet50_in1k1pct_60ep_finetune"),
            0.483,
            "supervised 25.4 (paper); SimCLR v2 57.9",
        ),
        Line(
            "ResNet-50, 10 %",
            _pair(SIMCLR[1000], "simclr/resnet50_in1k10pct_30ep_finetune"),
            0.656,
            "supervised 56.4 (paper); SimCLR v2 68.4",
        ),
    ),
    {
        "data/imagenet/train": IMAGENET,
        "data/imagenet-1pct.txt": "data/imagenet-1pct.txt: google-research/simclr's 1percent.txt (12,811 files) as paths; the recipe's header has the command",
        "data/imagenet-10pct.txt": "data/imagenet-10pct.txt: its 10percent.txt (128,116 files), likewise",
    },
)

# name: (folder, mean per class instead of top-1, linear, fine-tuned, supervised linear, supervised fine-tuned); ResNet-50 (1x)
TRANSFER = {
    "Food-101": ("food101", False, 0.684, 0.882, 72.3, 88.3),
    "CIFAR-10": ("cifar10", False, 0.906, 0.977, 93.6, 97.5),
    "CIFAR-100": ("cifar100", False, 0.716, 0.859, 78.3, 86.4),
    "Birdsnap": ("birdsnap", False, 0.374, 0.759, 53.7, 75.8),
    "SUN397": ("sun397", False, 0.588, 0.635, 61.9, 64.3),
    "Cars": ("cars", False, 0.503, 0.913, 66.7, 92.1),
    "Aircraft": ("aircraft", True, 0.503, 0.881, 61.0, 86.0),
    "DTD": ("dtd", False, 0.745, 0.732, 74.9, 74.6),
    "Pets": ("pets", True, 0.836, 0.892, 91.5, 92.1),
    "Caltech-101": ("caltech101", True, 0.903, 0.921, 94.5, 93.3),
    "Flowers": ("flowers", True, 0.912, 0.970, 94.7, 97.6),
}


def _transfers() -> tuple[Line, ...]:
    lines, encoder = [], SIMCLR[1000]
    for name, (folder, per_class, linear, tuned, other_linear, other_tuned) in TRANSFER.items():
        out = f"{encoder.folder}--linear-{folder}/results.json"
        words = f"--root data/{folder}{' --per_class' if per_class else ''} --out {out}"
        command = f"python experiments/transfer_linear.py {encoder.folder} {words}"
        peers = f"supervised {other_linear} (paper)"
        lines.append(Line(f"{name}: linear", (encoder,), linear, peers, command, out))
        count = f"$(ls data/{folder}/train | wc -l)"
        epochs = f"$(find -L data/{folder}/train -type f | wc -l | awk '{{print int(20000 * 256 / $1 + 0.5)}}')"
        flags = f"--data.root data/{folder} --model.num_classes {count} --trainer.max_epochs {epochs}"
        stage = Stage("simclr/resnet50_transfer_finetune", flags, encoder, f"finetune-{folder}")
        test = f"lit-vision test --ckpt_path {stage.folder}/checkpoints/last.ckpt"
        peers = f"supervised {other_tuned} (paper)" + ("; mean per class there, top-1 here" if per_class else "")
        lines.append(
            Line(f"{name}: fine-tune", (encoder, stage), tuned, peers, test, f"{stage.folder}/results-test.json")
        )
    return tuple(lines)


SIMCLR_TRANSFER = PaperTable(
    "SimCLR's ResNet-50 on other data sets (Chen et al. 2020, Table 8)",
    _transfers(),
    {"data/imagenet/train": IMAGENET}
    | {
        f"data/{folder}/train": f"data/{folder}: {name} as train/<class>/, val/<class>/ and test/<class>/"
        for name, (folder, *_) in TRANSFER.items()
    },
    note="Mean per class for Aircraft, Pets, Caltech-101 and Flowers, else top-1. VOC07 (80.5 linear, 84.1 fine-tuned) has several labels an image, which is "
    "not supported yet. Fine-tuning: one learning rate here; the paper chooses out of 7 x 8 settings on val (the recipe's header).",
)

TABLES = {
    "mae-finetune": MAE_FINETUNE,
    "mae-linear": MAE_LINEAR,
    "mae-ablation": MAE_ABLATION,
    "simclr-linear": SIMCLR_LINEAR,
    "simclr-semi": SIMCLR_SEMI,
    "simclr-transfer": SIMCLR_TRANSFER,
}

"""MAE's mask ratio at desk scale: the question of He et al. 2022, arXiv:2111.06377, figure 5.

Trains a small ViT on the rotated garments, resumable piece by piece, then prints from
experiments/results/mae-mask-ratio-desk.json only.
Run: make table-mae-mask-ratio SCALE=desk        Measure the committed weights again: make verify-mae-mask-ratio
"""

import sys
from collections.abc import Callable, Sequence

from ablation import main
from ablation_spec import Ablation, Claim, Values, Variant
from paper_rows.mae import mask_ratio

RATIOS = (0.25, 0.5, 0.75, 0.9)
ALL, FEW = 8000, 800
Sides = tuple[Sequence[float], Sequence[float]]
# table-mae-ablation has the same commands where it has the same rows
COMMANDS = tuple(dict.fromkeys(command for ratio in RATIOS for row in mask_ratio(ratio) for command in row.commands))


def label(ratio: float) -> str:
    """Return the name of a row."""
    return f"mask-{ratio}"


def against(better: float, worse: float, protocol: str, labels: int) -> Callable[[Values], Sides]:
    """Return the two sides of a claim that one ratio is better than another."""

    def sides(values: Values) -> Sides:
        return values[label(better), protocol, labels], values[label(worse), protocol, labels]

    return sides


def spreads(values: Values) -> Sides:
    """Return best minus worst ratio per seed: of the probe, and of fine-tuning on the same number of labels."""
    found = []
    for protocol in ("linear", "finetune"):
        by_seed = list(zip(*(values[label(ratio), protocol, FEW] for ratio in RATIOS)))
        found.append([max(seed) - min(seed) for seed in by_seed])
    return found[0], found[1]


TABLE = Ablation(
    name="mae-mask-ratio",
    title="MAE: how much to hide (figure 5's question)",
    note="The paper: ViT-L/16, ImageNet-1k, 800 epochs, all labels; here a ViT of 0.16 M parameters, 64 patches, 8,000 "
    "turned garments, 32 pixels. untrained: the encoder as initialised. One seed's weights are committed.",
    init="mae",
    variants=(
        Variant("untrained", trained=False),
        *(Variant(label(ratio), {"mask_ratio": ratio}) for ratio in RATIOS),
    ),
    columns=(("linear", ALL), ("linear", FEW), ("finetune", FEW)),
    claims=(
        Claim(
            "A probe gains from hiding 75 % rather than 25 %",
            "73.5 against 54.6 at worst",
            against(0.75, 0.25, "linear", ALL),
        ),
        Claim("A probe gains from hiding 75 % rather than 50 %", "rises up to 75 %", against(0.75, 0.5, "linear", ALL)),
        Claim("A probe loses from hiding 90 % rather than 75 %", "falls after 75 %", against(0.75, 0.9, "linear", ALL)),
        Claim("Fine-tuning depends less on the ratio than a probe (best minus worst)", "flat from 40 to 80 %", spreads),
    ),
    published={(label(0.75), "linear"): "73.5 %", (label(0.75), "finetune"): "84.9 %"},
    paper_scale=COMMANDS,
    epochs=30,
    seeds=5,
)

if __name__ == "__main__":
    sys.exit(main(TABLE))

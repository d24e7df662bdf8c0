"""Strength of SimCLR's color distortion at desk scale: the table of Chen et al. 2020, arXiv:2002.05709, section 3.3.

Trains a small CNN on the rotated garments, resumable piece by piece, then prints from
experiments/results/simclr-augmentation-desk.json only.
Run: make table-simclr-augmentation SCALE=desk      Measure the committed weights again: make verify-simclr-augmentation
"""

import sys
from collections.abc import Callable, Sequence

from ablation import main
from ablation_spec import Ablation, Claim, Values, Variant
from paper_rows.simclr import strength

STRENGTHS = (0.125, 0.25, 0.5, 1.0)
PAPER = {
    "strength-0.125": "59.6 %",
    "strength-0.25": "61.0 %",
    "strength-0.5": "62.6 %",
    "strength-1.0": "63.2 %",
    "strength-1.0-blur": "64.5 %",
}
ALL, FEW = 8000, 800
Sides = tuple[Sequence[float], Sequence[float]]
BLURRED = "strength-1.0-blur"
COMMANDS = tuple(c for row in (*map(strength, STRENGTHS), strength(1.0, blur=0.5)) for c in row.commands)


def against(better: str, worse: str) -> Callable[[Values], Sides]:
    """Return the two sides of a claim that one row is better than another."""

    def sides(values: Values) -> Sides:
        return values[better, "linear", ALL], values[worse, "linear", ALL]

    return sides


TABLE = Ablation(
    name="simclr-augmentation",
    title="SimCLR: how strong a distortion (the strength table's question)",
    note="The paper: ResNet-50, ImageNet-1k, 100 epochs, linear evaluation. Here a ResNet of 0.3 M parameters and "
    "8,000 turned garments of 32 pixels, which are gray: of the paper's colour distortion only brightness and contrast "
    "act on them. crop-and-turn: crop, flip and rotation alone, which all rows have. untrained: the encoder as "
    "initialised. One seed's weights are committed.",
    init="simclr",
    variants=(
        Variant("untrained", trained=False),
        Variant("crop-and-turn", views={"strength": 0.0, "grayscale": 0.0, "blur": 0.0}),
        *(Variant(f"strength-{s}", views={"strength": s, "blur": 0.0}) for s in STRENGTHS),
        Variant(BLURRED, views={"strength": 1.0, "blur": 0.5}),
    ),
    columns=(("linear", ALL), ("linear", FEW), ("knn", ALL)),
    claims=(
        Claim("Strength 1 is better than 1/8", "63.2 against 59.6", against("strength-1.0", "strength-0.125")),
        Claim("Strength 1 is better than 1/2", "63.2 against 62.6", against("strength-1.0", "strength-0.5")),
        Claim("Blur helps at strength 1", "64.5 against 63.2", against(BLURRED, "strength-1.0")),
    ),
    published={(name, "linear"): value for name, value in PAPER.items()},
    paper_scale=COMMANDS,
    epochs=20,
)

if __name__ == "__main__":
    sys.exit(main(TABLE))

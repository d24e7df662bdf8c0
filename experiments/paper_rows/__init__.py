"""The papers' tables: recipes, flags and data of each row, and what the paper and others report."""

from paper_rows.mae import MAE_ABLATION, MAE_FINETUNE, MAE_LINEAR
from paper_rows.rows import PaperTable, Row, Stage
from paper_rows.simclr import SIMCLR_LINEAR, SIMCLR_SEMI, SIMCLR_TRANSFER

__all__ = ["TABLES", "PaperTable", "Row", "Stage"]

TABLES = {
    "mae-finetune": MAE_FINETUNE,
    "mae-linear": MAE_LINEAR,
    "mae-ablation": MAE_ABLATION,
    "simclr-linear": SIMCLR_LINEAR,
    "simclr-semi": SIMCLR_SEMI,
    "simclr-transfer": SIMCLR_TRANSFER,
}

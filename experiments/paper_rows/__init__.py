"""What the papers' tables ask for: each row's recipes and flags, what the paper and others report, and the data. Used by paper_tables.py."""

from paper_rows.lines import Line, PaperTable, Stage
from paper_rows.mae import MAE_ABLATION, MAE_FINETUNE, MAE_LINEAR
from paper_rows.simclr import SIMCLR_LINEAR, SIMCLR_SEMI, SIMCLR_TRANSFER

__all__ = ["TABLES", "Line", "PaperTable", "Stage"]

TABLES = {
    "mae-finetune": MAE_FINETUNE,
    "mae-linear": MAE_LINEAR,
    "mae-ablation": MAE_ABLATION,
    "simclr-linear": SIMCLR_LINEAR,
    "simclr-semi": SIMCLR_SEMI,
    "simclr-transfer": SIMCLR_TRANSFER,
}

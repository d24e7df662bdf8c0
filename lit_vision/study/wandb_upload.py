"""Upload a study's tables and figures to Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_vision.runs.loggers import weights_and_biases
from lit_vision.study.report_content import PICTURE_TITLE, Content


def log_study(project: str, folder: Path, content: Content, result: dict[str, Any]) -> None:
    """Log a study as one W&B run: settings, cells, accuracy table and figures; without an account only print a notice.

    Args:
        project: of W&B.
        folder: of the study; its name becomes that of the run.
        content: the report.
        result: results.json.
    """
    config = {
        key: result[key] for key in ("recipe", "commit", "dirty", "data_fingerprint", "steps", "versions", "device")
    }
    logger = weights_and_biases(project, folder, name=folder.name, config=config)
    if logger is None:
        return
    import wandb

    logged: dict[str, Any] = {"accuracy": wandb.Table(columns=content.table.columns, data=content.table.rows)}
    columns = ["init", "protocol", "labels", "mean", "std", "seconds", "pretrain_seconds"]
    logged["cells"] = wandb.Table(columns=columns, data=[[cell[key] for key in columns] for cell in result["cells"]])
    for title, picture in [(PICTURE_TITLE, content.picture), *((s.title, s.picture) for s in content.sections)]:
        if picture:
            logged[f"report/{picture.stem}"] = wandb.Image(str(picture), caption=title)
    logger.experiment.log(logged)
    logger.experiment.summary["advice"] = content.advice
    logger.experiment.finish()

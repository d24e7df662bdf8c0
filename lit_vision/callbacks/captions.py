"""Log captions of validation images beside their references."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont

from lit_vision.callbacks.intervals import epoch_is_due
from lit_vision.callbacks.log_samples import log_picture, log_table
from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.io.text import printable
from lit_vision.results.overlays import tile_images

WIDTH, LINE, LINES, COLUMNS = 192, 14, 6, 30  # pixels of a picture and of a line; lines below it, letters in a line


class Captions(Callback):
    """Write RUN/samples/captions-e<epoch>.png and .csv: images with their first caption and the Captioner's below.

    The same images each time, evenly over the validation split.

    Args:
        every_n_epochs: epochs between two pictures, at least 1; the last epoch is always shown.
        images: number of images, at least 1.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 8) -> None:
        if every_n_epochs < 1 or images < 1:
            raise UserError("Captions: every_n_epochs and images must be at least 1")
        self.every_n_epochs, self.images = every_n_epochs, images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "caption"):
            raise UserError(
                "trainer.callbacks: Captions needs model.class_path lit_vision.methods.Captioner; remove it"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not epoch_is_due(trainer, self.every_n_epochs):
            return
        pictures, rows = self._describe(trainer, pl_module)
        name, epoch = f"captions-e{trainer.current_epoch + 1:04d}", f"epoch {trainer.current_epoch + 1}"
        log_picture(trainer, name, tile_images(np.stack(pictures), columns=4), caption=epoch)
        log_table(trainer, name, ["path", "reference", "caption", "log_probability"], rows)

    @torch.no_grad()
    def _describe(self, trainer: Trainer, module: LightningModule) -> tuple[list[np.ndarray], list[list[object]]]:
        pictures: list[np.ndarray] = []
        rows: list[list[object]] = []
        data = trainer.datamodule
        references, paths = data.captions("val"), data.paths("val")
        with evaluation_mode(module):
            for batch in data.eval_loader("val", limit=self.images):
                pixels = normalize(batch["images"].to(module.device), module.mean, module.std)[:, 0]
                with trainer.precision_plugin.forward_context():
                    tokens, log_p = module.caption(pixels)
                texts = module.tokenizer.decode(tokens)
                for image, index, text, value in zip(
                    batch["images"], batch["key"][:, 1].tolist(), texts, log_p.tolist()
                ):
                    reference, caption = printable(references[index][0]), printable(text)
                    pictures.append(draw_captions(image[0].numpy(), reference, caption))
                    rows.append([printable(paths[index]), reference, caption, round(value, 4)])
        return pictures[: self.images], rows[: self.images]


def draw_captions(image: np.ndarray, reference: str, caption: str) -> np.ndarray:
    """Return an image on white, 192 pixels wide, with two texts of at most 3 lines below it, in Latin letters.

    Args:
        image: (H, W, 3) uint8.
        reference: in gray.
        caption: in black.
    """
    sheet = Image.new("RGB", (WIDTH, WIDTH + LINE * LINES + 4), "white")
    shown = Image.fromarray(image)
    scale = WIDTH / max(shown.size)
    shown = shown.resize((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))))
    sheet.paste(shown, ((WIDTH - shown.width) // 2, (WIDTH - shown.height) // 2))
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(), WIDTH + 2
    for text, color in ((reference, "gray"), (caption, "black")):
        for line in textwrap.wrap(text, COLUMNS, max_lines=LINES // 2, placeholder=" ..."):
            draw.text((4, top), line.encode("latin-1", "replace").decode("latin-1"), color, font)
            top += LINE
    return np.asarray(sheet)

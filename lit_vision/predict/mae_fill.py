"""In-painting by a masked autoencoder: patches that a mask touches are hidden, predicted and blended in.

L patches of a tile, P side of a patch, C channels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from lit_vision.errors import UserError
from lit_vision.predict.tiles import TiledNetwork
from lit_vision.weights.checkpoint_layouts import read_file_and_content
from lit_vision.weights.load import load_into

if TYPE_CHECKING:
    from lit_vision.methods.mae.network import MAENetwork

FEATHER = 3  # pixels around a hole over which the prediction fades into the image


def open_mae(path: Path) -> MAENetwork | None:
    """Return the MAE of a checkpoint or an imported file, None if it holds another model.

    Raises:
        UserError: the MAE predicts normalized patches (norm_pix_loss), which have no brightness and contrast.
    """
    if path.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        return None
    from lit_vision.methods.mae.network import MAENetwork

    state, header, content = read_file_and_content(path)
    hyper = json.loads(header["hyper_parameters"]) if "hyper_parameters" in header else None
    if hyper is None and isinstance(content, dict):
        hyper = content.get("hyper_parameters")
    if hyper is None or not any(key.endswith("decoder.mask_token") for key in state):
        return None
    if hyper.get("norm_pix_loss", True):
        raise UserError(
            f"{path}: this MAE was trained with norm_pix_loss true: its patches have no brightness and contrast of "
            "their own; train one with norm_pix_loss: false (experiments/restoration/mae_photographs_pixels.yaml)"
        )
    mae = MAENetwork({**hyper, "backbone_args": {**(hyper.get("backbone_args") or {}), "pretrained": False}})
    load_into(mae, path)
    mae.eval()
    return mae


def tiled_mae(mae: MAENetwork, device: torch.device | str = "cpu") -> TiledNetwork:
    """Return an MAE as a network of tiles of the size that it was trained on; known pixels are not changed.

    A tile without any visible patch gets what the MAE predicts from nothing; a hole larger than the tiles is filled
    from its edges only where a tile reaches over them.
    """
    mae = mae.to(device)
    side, patch = mae.grid[0] * mae.patch_size, mae.patch_size
    if mae.grid[0] != mae.grid[1]:
        raise UserError(f"model.backbone_args.img_size: an MAE of {mae.grid} patches; in-painting needs a square one")
    mean, std = mae.mean[:, None, None], mae.std[:, None, None]
    channels = len(mae.mean)

    @torch.inference_mode()
    def run(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
        given = pixels.shape[2]
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).to(device)  # (C, h, w)
        each = images[:, None].expand(-1, channels, -1, -1) if 1 in (channels, given) else images[None]
        holes = torch.from_numpy(missing).to(device).expand(len(each), -1, -1)
        filled = fill(mae, (each - mean) / std, holes) * std + mean
        if not bool(filled.isfinite().all()):
            raise UserError("--model: the pixels that this MAE predicts are not finite; check its training")
        if given == 1:
            filled = filled.mean(1, keepdim=True)
        predicted = filled.reshape(images.shape).permute(1, 2, 0).cpu().numpy()
        hidden = _touched(missing, patch)
        near = 1 - cv2.distanceTransform((~missing).astype(np.uint8), cv2.DIST_L2, 3) / FEATHER
        share = np.where(hidden, near.clip(0, 1), 0.0)[..., None].astype(np.float32)
        blended: np.ndarray = share * predicted + (1 - share) * pixels
        return blended

    return TiledNetwork(run, side, None, patch, fixed=True, needs_holes=True)


def fill(mae: MAENetwork, images: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Return images whose patches with a missing pixel are predicted from all others.

    Args:
        mae: in evaluation mode.
        images: (B, C, S, S) float, normalized.
        missing: (B, S, S) bool.

    Returns:
        (B, C, S, S) normalized: predictions in the touched patches, the images elsewhere.
    """
    from lit_vision.methods.mae.network import patchify, random_masking, unpatchify

    hidden = patchify(missing[:, None].float(), mae.patch_size).amax(2) > 0  # (B, L)
    out = images.clone()
    for row in range(len(images)):  # images have different numbers of hidden patches
        count = int((~hidden[row]).sum())
        if count == hidden.shape[1]:
            continue
        ids_keep, ids_restore, _, shuffle = random_masking(hidden[row : row + 1].float(), count)
        latent = mae.backbone.forward_tokens(images[row : row + 1], ids_keep)
        predicted = mae.decoder(latent, shuffle).float()
        predicted = predicted.gather(1, ids_restore.unsqueeze(-1).expand_as(predicted))
        patches = patchify(images[row : row + 1], mae.patch_size)
        patches = torch.where(hidden[row][None, :, None], predicted, patches)
        out[row] = unpatchify(patches, mae.patch_size, mae.grid)[0]
    return out


def _touched(missing: np.ndarray, patch: int) -> np.ndarray:
    """Return (h, w) bool: True in the patches of which a pixel is missing."""
    rows, columns = missing.shape[0] // patch, missing.shape[1] // patch
    blocks = missing.reshape(rows, patch, columns, patch).any((1, 3))
    return blocks.repeat(patch, 0).repeat(patch, 1)

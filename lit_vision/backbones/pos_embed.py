"""Position embeddings: the fixed 2-D sin-cos table of MAE, and resizing of a table to another grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(width: int, grid: int | tuple[int, int], cls_token: bool = True) -> Tensor:
    """Return the fixed 2-D sin-cos position embedding.

    The first half of the channels holds the column x, the second the row y; each half is sin(x w_k) for all k, then
    cos(x w_k), with w_k = 10000^(-k / (width / 4)) and integer x. Patches are row-major.
    Source: He et al. 2022, arXiv:2111.06377, A.1, in the channel order of the released weights.

    Args:
        width: D, a multiple of 4.
        grid: patches per side, or (rows, columns).
        cls_token: put a row of zeros in front, for the cls token.

    Returns:
        (1, L, D) or, with the cls row, (1, 1 + L, D), float32. Every patch row has squared norm D / 2.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4, not {width}")
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))

    def encode(positions: Tensor) -> Tensor:  # (L,) -> (L, D / 2)
        angles = positions[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device="cpu"),
        torch.arange(columns, dtype=torch.float64, device="cpu"),
        indexing="ij",
    )
    table = torch.cat([encode(x.flatten()), encode(y.flatten())], dim=1)  # (L, D)
    if cls_token:
        table = torch.cat([torch.zeros(1, width, dtype=torch.float64, device="cpu"), table])
    return table[None].float()


def resize_pos_embed(
    table: Tensor, grid: tuple[int, int], prefix: int = 1, source: tuple[int, int] | None = None
) -> Tensor:
    """Resize a table of positions to another grid, bicubic without antialiasing.

    The first `prefix` rows stay as they are.
    Source: facebookresearch/mae's fine-tuning (bicubic, align_corners False, cls row unchanged).

    Args:
        table: (1, prefix + L, D).
        grid: (rows, columns) wanted.
        prefix: rows in front that belong to no patch (cls, registers).
        source: (rows, columns) of the table; None is a square.

    Returns:
        (1, prefix + rows * columns, D), dtype of the table.

    Raises:
        ValueError: L is not a square, or not the product of `source`.
    """
    front, patches = table[:, :prefix], table[:, prefix:]
    rows, columns = source or (math.isqrt(patches.shape[1]),) * 2
    if rows * columns != patches.shape[1]:
        wanted = f"grid of {rows} x {columns}" if source else "square grid"
        raise ValueError(f"the table has {patches.shape[1]} patch rows, which is no {wanted}")
    if (rows, columns) == tuple(grid):
        return table
    maps = patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()  # (1, D, rows, columns)
    maps = F.interpolate(maps, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([front, maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)

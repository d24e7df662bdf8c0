"""LeJEPA without Lightning: the two losses, projector, network. Balestriero and LeCun 2025, arXiv:2511.08544.

B images, V views, G global views, K width of a projection, M directions, T knots, D width of the backbone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_vision import distributed
from lit_vision.errors import UserError
from lit_vision.io.hashing import seed_from_text
from lit_vision.methods.pixels import channel_values
from lit_vision.weights.pretrained import create_backbone

PARTS = frozenset({"backbone", "projection"})  # the modules in a checkpoint of this method
TRAIN_VIEW = "lejepa"  # two global views; local ones by data.local_views
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: dict[str, Any] = {"backbone": "vit_small_patch16_224", "backbone_args": None, "mean": None, "std": None}
DEFAULTS |= {"projection_width": 128, "projection_hidden": 2048}
DEFAULTS |= {"sigreg_weight": 0.05, "num_directions": 1024, "num_knots": 17, "seed": 0}


def random_directions(width: int, count: int, seed: int, step: int) -> Tensor:
    """Return unit vectors that follow from (seed, step) alone, so that all processes and a resumed run draw the same.

    Args:
        width: K.
        count: M.
        seed: any whole number.
        step: number of the optimizer step.

    Returns:
        (K, M) float32 on the CPU; each column has length 1 and is uniform on the sphere.
    """
    generator = torch.Generator().manual_seed(seed_from_text(repr((seed, step))) >> 1)
    directions = torch.randn(width, count, generator=generator)
    return directions / directions.norm(dim=0)


def epps_pulley(x: Tensor, knots: int = 17, limit: float = 3.0) -> Tensor:
    """Distance of samples from the standard normal distribution, by their characteristic function.

    The statistic of Epps and Pulley 1983.

    For each column, with N samples over all processes and phi_N the empirical characteristic function:
        N * integral over the line of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,
    by the trapezoid rule with `knots` points on [0, limit], doubled by symmetry (the authors' defaults). Over the whole
    line the integral has the closed form
        sqrt(2 pi) * ((1 / N) sum_ij exp(-(x_i - x_j)^2 / 2) - sqrt(2) sum_i exp(-x_i^2 / 4) + N / sqrt(3)),
    from which the rule differs by what lies beyond the limit and between the knots; the tests state how much.
    Source: Balestriero and LeCun 2025, arXiv:2511.08544.

    Args:
        x: (N, ...) samples of this process, the first dimension runs over samples.
        knots: T, at least 2.
        limit: end of the rule, greater than 0.

    Returns:
        x.shape[1:], at least float32, not negative; the same on every process. Its gradient, after DDP's averaging, is
        that of one process on the joined samples.
    """
    x = x if x.dtype == torch.float64 else x.float()
    t = torch.linspace(0, limit, knots, dtype=x.dtype, device=x.device)
    weights = torch.full_like(t, limit / (knots - 1))
    weights[[0, -1]] /= 2
    target = (-t.square() / 2).exp()  # the normal's characteristic function, and the weight as well
    angles = x.unsqueeze(-1) * t  # (N, ..., T)
    sums = torch.stack((angles.cos().sum(0), angles.sin().sum(0)))  # (2, ..., T)
    count = distributed.all_reduce_sum(sums.new_tensor(len(x))).detach()
    real, imaginary = distributed.all_reduce_sum(sums) / count
    error = (real - target).square() + imaginary.square()
    return 2 * count * (error * (target * weights)).sum(-1)


def sigreg(z: Tensor, directions: Tensor, knots: int = 17) -> Tensor:
    """Sketched isotropic Gaussian regularization: mean of `epps_pulley` over random directions and over views.

    Each view is compared by itself. Where all projections are exactly 0 the value is positive and its gradient is zero;
    where they are equal but not 0 the gradient is not zero. Source: arXiv:2511.08544.

    Args:
        z: (B, V, K) projections; B of this process.
        directions: (K, M) unit vectors, the same on all processes.
        knots: see `epps_pulley`.

    Returns:
        Scalar, at least float32, not negative.
    """
    z = z if z.dtype == torch.float64 else z.float()
    return epps_pulley(z @ directions.to(z), knots).mean()


def prediction_loss(z: Tensor, num_global: int) -> Tensor:
    """Mean squared distance of every view's projection to the mean projection of its image's global views.

    There is no stop-gradient, no predictor and no teacher. Source: arXiv:2511.08544.

    Args:
        z: (B, V, K) projections, the G global views first.
        num_global: G, at least 1.

    Returns:
        Scalar, at least float32; the mean over images, views and coordinates.
    """
    z = z if z.dtype == torch.float64 else z.float()
    return (z - z[:, :num_global].mean(1, keepdim=True)).square().mean()


class Projector(nn.Sequential):
    """Three linear maps with batch norm and ReLU between them; not used after pre-training.

    Input (B, in_width), output (B, out_width), float.

    Args:
        in_width: D of the backbone.
        hidden_width: of the two hidden layers.
        out_width: K.
    """

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__(
            nn.Linear(in_width, hidden_width, bias=False),
            nn.BatchNorm1d(hidden_width),
            nn.ReLU(),
            nn.Linear(hidden_width, hidden_width, bias=False),
            nn.BatchNorm1d(hidden_width),
            nn.ReLU(),
            nn.Linear(hidden_width, out_width),
        )


class LeJEPANetwork(nn.Module):
    """Backbone and projector.

    Args:
        h: hyper-parameters of `lit_vision.methods.lejepa.lejepa.LeJEPA`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    method_name, parts, train_view = "LeJEPA", PARTS, TRAIN_VIEW

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make the parts."""
        if not 0 < h["sigreg_weight"] < 1:
            raise UserError(f"sigreg_weight: {h['sigreg_weight']} is not between 0 and 1; the paper has 0.02 to 0.05")
        if h["num_directions"] < 1 or h["num_knots"] < 2:
            raise UserError(
                f"num_directions: {h['num_directions']}, num_knots: {h['num_knots']}; give at least 1 direction and "
                "2 knots (the paper: 1024 and 17)"
            )
        self.backbone, _ = create_backbone(h["backbone"], **(h["backbone_args"] or {}))
        self.projection = Projector(self.backbone.width, h["projection_hidden"], h["projection_width"])
        self.sigreg_weight, self.num_directions = h["sigreg_weight"], h["num_directions"]
        self.num_knots, self.seed = h["num_knots"], h["seed"]
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], [0.485, 0.456, 0.406], channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], [0.229, 0.224, 0.225], channels)))

    def forward(self, images: Tensor) -> Tensor:
        """Return projections z (B, K) of normalised images (B, C, H, W)."""
        z: Tensor = self.projection(self.backbone(images))
        return z

    def loss(self, views: Tensor, local_views: Tensor | None, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1 - sigreg_weight) x prediction + sigreg_weight x SIGReg, then both parts; three scalars.

        Args:
            views: (B, G, C, H, W) float, normalised: the global views, at least 2 where there is no local one.
            local_views: (B, V - G, C, h, w) float, normalised, of another size; None without local views.
            step: of the directions; every process must give the same.

        Raises:
            UserError: fewer than two views of an image.
        """
        num_global = views.shape[1]
        if num_global + (0 if local_views is None else local_views.shape[1]) < 2:
            raise UserError("data.train_view: LeJEPA needs two or more views of each image; set it to lejepa")
        h = [self.backbone(v.flatten(0, 1)).unflatten(0, v.shape[:2]) for v in (views, local_views) if v is not None]
        z = torch.cat(h, dim=1)  # (B, V, D); one batch norm of the projector sees all views
        z = self.projection(z.flatten(0, 1)).unflatten(0, z.shape[:2])  # (B, V, K)
        with torch.autocast(z.device.type, enabled=False):
            directions = random_directions(z.shape[-1], self.num_directions, self.seed, step).to(z.device)
            prediction, regularity = prediction_loss(z, num_global), sigreg(z, directions, self.num_knots)
        weight = self.sigreg_weight
        return (1 - weight) * prediction + weight * regularity, prediction, regularity

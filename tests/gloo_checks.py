"""Checks for test_distributed.py, run in a process: two forked gloo ranks, then one process on the joined batch.

Usage: python tests/gloo_checks.py OUT. Writes OUT/rank0.pt, rank1.pt and single.pt: {check: {tensor name: tensor}},
    equal names to compare.
Fork, not spawn: the imports (seconds of lightning and timm) are paid once. It is safe here: one thread, CPU only,
nothing opened before.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_vision import distributed, optim
from lit_vision.evaluation.mean_recall import MeanClassRecall
from lit_vision.methods.captioner.captioner import Captioner
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.detection.detector import Detector
from lit_vision.methods.generation.flow_matching import FlowMatching
from lit_vision.methods.generation.gan import GAN
from lit_vision.methods.image_text.image_text import ImageText
from lit_vision.methods.image_text.losses import clip_loss, siglip_loss
from lit_vision.methods.lejepa.lejepa import LeJEPA
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.multilabel.multilabel import MultiLabelClassifier
from lit_vision.methods.restoration.restorer import Restorer
from lit_vision.methods.segmentation.segmenter import Segmenter
from lit_vision.methods.simclr.network import nt_xent
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.methods.video_classifier.video_classifier import VideoClassifier

WORLD, B = 2, 4  # images per process
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
# A smooth activation: at ReLU's kink a value that rounding moves over zero switches its gradient on or off, which is no
# error of the exchange between processes, and no tolerance in float32 would hold.
RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "act_layer": "silu"}
DENSENET = {
    "stem": "small",
    "growth_rate": 8,
    "block_config": [1, 1],
    "act_layer": "silu",
}  # its norms carry the activation


class Step(nn.Module):
    """DDP wants a forward: that of a training step."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.method.training_step(batch, 0)


def simclr_resnet() -> nn.Module:
    return SimCLR(
        "resnet18", RESNET, projection_width=8, projection_layers=3, projection_batch_norm=True, temperature=0.5
    )


def simclr_vit() -> nn.Module:
    return SimCLR("vit_tiny_patch16_224", VIT, projection_width=8, temperature=0.5)


def simclr_densenet() -> nn.Module:
    return SimCLR("densenet121", DENSENET, projection_width=8, temperature=0.5)


def image_text() -> nn.Module:
    sizes = {"vocab_size": 20, "context_length": 6, "text_width": 16, "text_depth": 1, "text_heads": 2}
    return ImageText("vit_tiny_patch16_224", VIT, embed_width=8, **sizes)


def captioner() -> nn.Module:
    sizes = {"vocab_size": 20, "context_length": 6, "decoder_width": 16, "decoder_heads": 2}
    return Captioner("vit_tiny_patch16_224", VIT, prefix_grid=2, dropout=0.3, **sizes)  # dropout has the samples' keys


def mae() -> nn.Module:
    return MAE("vit_tiny_patch16_224", VIT, decoder_width=32, decoder_depth=1, decoder_heads=2)


def lejepa() -> nn.Module:
    return LeJEPA("vit_tiny_patch16_224", VIT, projection_width=8, projection_hidden=16, num_directions=32)


def restorer() -> nn.Module:
    return Restorer(["gaussian_noise 25", "rectangle_holes 0.2"], backbone_args={"depth": 3, "width": 4}, loss="mse")


def classifier_vit() -> nn.Module:
    return Classifier("vit_tiny_patch16_224", 5, VIT, label_smoothing=0.1, head_init_std=0.1)


def classifier_resnet() -> nn.Module:
    return Classifier("resnet18", 5, RESNET, head_norm=True, head_init_std=0.1)


def multilabel() -> nn.Module:
    return MultiLabelClassifier("vit_tiny_patch16_224", 3, VIT)


class ViewsAreFrames(VideoClassifier):
    """A video classifier of clips whose frames are the views of the images."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step({**batch, "images": batch["images"][:, None]}, batch_idx)


def video_classifier() -> nn.Module:
    return ViewsAreFrames("resnet18", 5, "tsm", backbone_args=RESNET)


def segmenter() -> nn.Module:
    return Segmenter("resnet18", 3, 16, "fcn", width=8, dropout=0.0, loss="ce+dice", backbone_args=RESNET)


def segmenter_upernet() -> nn.Module:
    """With its auxiliary loss, and with blocks of which one pixel counts."""
    sizes = {"strides": [2, 4, 8], "width": 8, "dropout": 0.0, "loss_stride": 2}
    return Segmenter("resnet18", 3, 16, "upernet", backbone_args=RESNET, **sizes)


def detector(head: str, strides: list[int], **more: int) -> nn.Module:
    return Detector("resnet18", 3, SIDE, head, strides, 32, 1, 16, backbone_args=RESNET, **more)


def fcos() -> nn.Module:
    return detector("fcos", [4, 8])


def retinanet() -> nn.Module:
    return detector("retinanet", [4, 8])


def faster_rcnn() -> nn.Module:
    return detector("faster_rcnn", [2, 4, 8], rois=8)  # 1008 anchors for 256 places, hundreds of proposals for 8


def mask_rcnn() -> nn.Module:
    return detector("mask_rcnn", [4, 8], rois=2000)  # all proposals, whose number differs from image to image


SMALL = {"img_size": 16, "num_classes": 5, "width": 8, "multipliers": (1, 2)}


def flow_matching() -> nn.Module:
    return FlowMatching(**SMALL, blocks=1)


class OneNetwork(GAN):
    """The step of one network of a GAN, the other one fixed, as its two optimizers take them in turn."""

    def __init__(self, trains: str) -> None:
        super().__init__(**SMALL, noise_width=4, discriminator_width=8, augmentation=("translation",))
        self.trains = trains
        (self.generator if trains == "discriminator" else self.discriminator).requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, labels, keys = batch["images"][:, 0], batch["label"], batch["key"]
        if self.trains == "discriminator":
            return sum(self.discriminator_loss(images, labels, keys, 0.5))
        return self.generator_loss(labels, keys)


def gan_discriminator() -> nn.Module:
    return OneNetwork("discriminator")


def gan_generator() -> nn.Module:
    return OneNetwork("generator")


SIDE = 32  # of a detector's images
METHODS: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f
    for f in (
        simclr_resnet,
        simclr_vit,
        simclr_densenet,
        mae,
        lejepa,
        restorer,
        classifier_vit,
        classifier_resnet,
        multilabel,
        video_classifier,
    )
}
METHODS |= {f.__name__: f for f in (image_text, captioner, flow_matching)}
# In float64 alone, where no kink of their ReLUs is crossed (see RESNET) and no choice of regions is turned by rounding.
GANS = {f.__name__: f for f in (gan_discriminator, gan_generator)}  # at the hinge, biases have gradients near zero
DENSE = {f.__name__: f for f in (segmenter, segmenter_upernet, fcos, retinanet, faster_rcnn, mask_rcnn)}
OBJECTS = (3, 2, 3, 2, 0, 1, 0, 0)  # of each image: what the losses divide by is far from equal on two processes
ONE_SIDED = {"fcos one-sided": fcos, "mask_rcnn one-sided": mask_rcnn}  # no object at all on the second process
OWN_OPTIMIZER = {"simclr_resnet lars": (simclr_resnet, 0.3), "mae adamw": (mae, 1e-3)}  # and its learning rate


def targets_of(objects: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Boxes of 8 to 16 pixels, their classes, and a filled mask for each."""
    generator = torch.Generator().manual_seed(4)
    targets = []
    for n in objects:
        corner = torch.randint(0, SIDE - 16, (n, 2), generator=generator)
        boxes = torch.cat((corner, corner + torch.randint(8, 17, (n, 2), generator=generator)), dim=1)
        masks = torch.zeros(n, SIDE, SIDE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(0, 3, (n,), generator=generator)
        targets.append({"boxes": boxes.to(dtype), "labels": labels, "masks": masks})
    return targets


def joined_batch(
    views: int, dtype: torch.dtype, enlarge: int = 1, objects: tuple[int, ...] = OBJECTS
) -> dict[str, Tensor | list]:
    generator = torch.Generator().manual_seed(1)
    n = WORLD * B
    # coarse patterns, not noise: images that a random network can tell apart keep the gradients well conditioned in
    # float32
    coarse = (
        torch.rand(n, 1, 3, 4, 4, generator=generator, dtype=torch.float64)
        .repeat_interleave(4, 3)
        .repeat_interleave(4, 4)
    )
    fine = torch.rand(n, views, 3, 16, 16, generator=generator, dtype=torch.float64)
    images = (0.8 * coarse + 0.2 * fine).to(dtype).repeat_interleave(enlarge, 3).repeat_interleave(enlarge, 4)
    key = torch.stack((torch.zeros(n), torch.arange(n), torch.zeros(n)), dim=1).long()
    mask = torch.randint(0, 3, (n, 16, 16), generator=generator)
    mask[0, :8] = 255  # ignored
    mask[B:, :, 3:] = 255  # on the second process most are,
    mask[B:][mask[B:] == 2] = 1  # and one class is absent
    targets = targets_of(objects, dtype)
    tokens = torch.randint(0, 20, (n, 6), generator=generator)
    texts = {"tokens": tokens, "token_mask": torch.arange(6) < torch.arange(1, n + 1)[:, None].clamp(max=6)}
    return {"images": images, "label": torch.arange(n) % 5, "key": key, "mask": mask, "targets": targets, **texts}


def several_labels(dtype: torch.dtype) -> Tensor:
    """Three labels an image, (WORLD * B, 3): 0, 1, and NaN for unknown, which most are on the second process."""
    labels = torch.randint(0, 2, (WORLD * B, 3), generator=torch.Generator().manual_seed(5)).to(dtype)
    labels[0, 0] = labels[B:, 1:] = torch.nan
    return labels


def share(batch: dict[str, Tensor | list]) -> dict[str, Tensor | list]:
    """This rank's rows, as whole batches follow each other over the ranks; all rows with one process."""
    if distributed.world_size() == 1:
        return batch
    rows = slice(distributed.rank() * B, (distributed.rank() + 1) * B)
    return {name: value[rows] for name, value in batch.items()}


def method_check(
    make: Callable[[], nn.Module], dtype: torch.dtype, own_lr: float | None = None, objects: tuple[int, ...] = OBJECTS
) -> dict[str, Tensor]:
    """Return loss and gradients of one step, and weights and buffers before and after three, with DDP on two ranks.

    With `own_lr` the optimiser is the method's own kind at that rate, else SGD.
    """
    torch.manual_seed(0)
    method = make().to(dtype).train()
    step: nn.Module = Step(method)
    parallel = distributed.world_size() > 1
    if parallel:
        distributed.convert_batch_norm(method)
        step = nn.parallel.DistributedDataParallel(step)
    views = 2 if isinstance(method, SimCLR | LeJEPA | VideoClassifier) else 1
    enlarge = 2 if isinstance(method, Detector) else 1
    joined = joined_batch(views, dtype, enlarge, objects)
    batch = share({**joined, "label": several_labels(dtype)} if isinstance(method, MultiLabelClassifier) else joined)
    if own_lr is None:
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    else:
        h = method.hparams
        groups = optim.decay_groups(method.named_parameters(), h.weight_decay)
        optimizer = optim.build_optimizer(groups, h.optimizer, lr=own_lr, betas=h.betas, momentum=h.momentum)
    out = {f"before {name}": p.detach().clone() for name, p in method.named_parameters()}
    for i in range(3):
        optimizer.zero_grad()
        loss = step(batch)
        loss.backward()
        if i == 0:
            total = loss.detach().clone()
            if parallel:
                dist.all_reduce(total)
                total /= WORLD
            out["loss"], out["own loss"] = total, loss.detach()
            out |= {f"grad {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
    out |= {f"after three steps {name}": value.clone() for name, value in method.state_dict().items()}
    return out


def nt_xent_check(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the loss on leaves and its gradients: summed over ranks and divided by their number, those of one process.

    And with local negatives: each rank's value is that of its own rows.
    """
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(WORLD * B, 2, 8, generator=generator, dtype=torch.float64).to(dtype)
    local = share({"z": z})["z"].requires_grad_()
    loss = nt_xent(local[:, 0], local[:, 1], 0.2)
    (3 * loss).backward()
    grad = distributed.gather(local.grad) / distributed.world_size()
    alone = torch.stack(
        [nt_xent(*part.unbind(1), 0.2) for part in z.detach().split(B)]
    )  # what each process sees of itself
    mine = nt_xent(*share({"z": z})["z"].unbind(1), 0.2, negatives="local")[None]
    local = distributed.gather(mine) if distributed.world_size() > 1 else alone
    return {"loss": loss.detach(), "grad": grad, "local": local}


def image_text_losses_check(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return both losses on leaves and their gradients, after DDP's averaging as in `nt_xent_check`.

    The scale is below and above the limit from which sums of exponentials are shifted.
    """
    generator = torch.Generator().manual_seed(6)
    pairs = torch.randn(WORLD * B, 2, 8, generator=generator, dtype=torch.float64).to(dtype)
    out: dict[str, Tensor] = {}
    for name, start in (("clip", 14.3), ("clip, large scale", 90.0), ("siglip", 10.0)):
        local = share({"pairs": pairs})["pairs"].clone().requires_grad_()
        scale, bias = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (start, -3.0))
        images, texts = local.unbind(1)
        loss = siglip_loss(images, texts, scale, bias) if name == "siglip" else clip_loss(images, texts, scale)
        (3 * loss).backward()
        out |= {
            f"{name} loss": loss.detach(),
            f"{name} grad": distributed.gather(local.grad) / distributed.world_size(),
        }
        for scalar, grad in (("scale", scale.grad), ("bias", bias.grad)):
            if grad is not None:
                out[f"{name} grad {scalar}"] = distributed.gather(grad.reshape(1)).mean()
    return out


def batch_norm_check(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return outputs, gradients and running statistics for unequal shares of 7 rows, for several kinds of layer."""
    out: dict[str, Tensor] = {}
    sizes = (3, 4)
    kinds: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "1d": (lambda: nn.BatchNorm1d(6), (6,)),
        "2d": (lambda: nn.BatchNorm2d(6, momentum=None), (6, 4, 5)),
        "no affine": (lambda: nn.BatchNorm1d(6, affine=False, eps=1e-6), (6,)),
        "no statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), (6, 2, 2)),
    }
    for name, (make, shape) in kinds.items():
        generator = torch.Generator().manual_seed(3)
        x = (100 + torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64)).to(dtype)
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
        start = 0
        if distributed.world_size() > 1:
            start = sum(sizes[: distributed.rank()])
            x, weights = (t[start : start + sizes[distributed.rank()]] for t in (x, weights))
        torch.manual_seed(0)
        norm = make().to(dtype)
        if norm.weight is not None:
            nn.init.normal_(norm.weight)
        norm = distributed.convert_batch_norm(norm) if distributed.world_size() > 1 else norm
        for _ in range(2):
            norm.zero_grad()
            leaf = x.clone().requires_grad_()
            y = norm(leaf)
            (y * weights).square().sum().backward()
        padded = torch.zeros(2, sum(sizes), *shape, dtype=dtype)  # unequal shares: place the rows and add the ranks up
        padded[:, start : start + len(x)] = torch.stack((y.detach(), leaf.grad))
        for p in norm.parameters():
            distributed.world_size() > 1 and dist.all_reduce(p.grad)
        rows = distributed.all_reduce_sum(padded)
        out |= {f"{name} y": rows[0], f"{name} grad x": rows[1]}
        out |= {f"{name} grad {key}": p.grad for key, p in norm.named_parameters()}
        out |= {f"{name} {key}": value for key, value in norm.state_dict().items()}
        if norm.track_running_stats:
            out[f"{name} eval"] = norm.eval()(torch.full_like(x[:1], 99.0)).detach()
    return out


def recalls_check() -> dict[str, Tensor]:
    """Mean per class where the processes hold other classes; the mean of their means would be 7 / 12."""
    rows = share({"label": torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), "right": torch.tensor([1, 1, 0, 1, 0, 0, 1, 1]) > 0})
    metric = MeanClassRecall(4)
    metric.update(rows["right"], rows["label"])
    return {"mean per class": metric.compute()}


def every_check() -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {"recalls float32": recalls_check()}
    for dtype in (torch.float32, torch.float64):
        label = str(dtype).removeprefix("torch.")
        out[f"nt_xent {label}"] = nt_xent_check(dtype)
        out[f"image_text losses {label}"] = image_text_losses_check(dtype)
        out[f"batch_norm {label}"] = batch_norm_check(dtype)
        for name, make in METHODS.items():
            out[f"{name} {label}"] = method_check(make, dtype)
    for name, make in {**DENSE, **GANS}.items():
        out[f"{name} float64"] = method_check(make, torch.float64)
    for name, make in ONE_SIDED.items():
        out[f"{name} float64"] = method_check(make, torch.float64, objects=(*OBJECTS[:B], *[0] * B))
    for name, (make, lr) in OWN_OPTIMIZER.items():
        out[f"{name} float64"] = method_check(make, torch.float64, lr)
    return out


def on_rank(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    torch.save(every_check(), f"{out}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(out: str) -> None:
    warnings.filterwarnings("ignore")  # self.log without a trainer
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(on_rank, args=(f"{folder}/store", out), nprocs=WORLD, start_method="fork")
    torch.save(every_check(), Path(out) / "single.pt")


if __name__ == "__main__":
    main(sys.argv[1])

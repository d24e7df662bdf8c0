"""Small checkpoints of other projects, built with their installed code.

Those of facebookresearch/mae are built from the table of its keys.
"""

import json

import timm
import torch
from torch import Tensor, nn

from lit_vision.weights.compatibility import (
    CLIP,
    DINOV2,
    EFFICIENTNET_LITE,
    FACEBOOK_MAE,
    LIGHTLY_MAE,
    LIGHTLY_SIMCLR,
    MOBILENET,
    TORCHVISION,
    TRANSFORMERS,
)

NAME = "vit_base_patch16_224"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
BACKBONE_FLAGS = ["--backbone", NAME, "--backbone_args", json.dumps(VIT)]
SIZES = ["--args", '{"decoder_heads": 2}']


def scrambled(module: nn.Module) -> nn.Module:
    """Give all parameters and statistics different random values, norms and biases too."""
    torch.manual_seed(7)
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return module.eval()


def transformers_mae(**more) -> nn.Module:
    """Return ViT-MAE of transformers in the size of `VIT`."""
    from transformers.models.vit_mae.configuration_vit_mae import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTraining

    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(image_size=32, patch_size=8, decoder_intermediate_size=64, **encoder, **decoder, **more)
    return scrambled(ViTMAEForPreTraining(config))


def hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys from the modules of transformers 5 to those of the files of the Hub."""
    pairs = [("vit.layers.", "vit.encoder.layer."), (".attention.o_proj.", ".attention.output.dense.")]
    pairs += [(".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense.")]
    pairs += [(f".attention.{a[0]}_proj.", f".attention.attention.{a}.") for a in ("query", "key", "value")]
    out = {}
    for key, value in state.items():
        for new, old in pairs:
            key = key.replace(new, old)
        out[key] = value
    return out


VIT_OF_TRANSFORMERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT_OF_TRANSFORMERS |= {"image_size": 32, "patch_size": 8}


def transformers_dinov2(registers: bool, **more) -> nn.Module:
    """Return DINOv2 of transformers, with or without four registers, in the size of `VIT`."""
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Config, Dinov2Model
    from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    config, model = (Dinov2WithRegistersConfig, Dinov2WithRegistersModel) if registers else (Dinov2Config, Dinov2Model)
    return scrambled(model(config(**VIT_OF_TRANSFORMERS, **more)))


def transformers_clip(**more) -> nn.Module:
    """Return CLIP's image tower of transformers in the size of `VIT`."""
    from transformers.models.clip.modeling_clip import CLIPVisionConfig, CLIPVisionModel

    return scrambled(CLIPVisionModel(CLIPVisionConfig(**VIT_OF_TRANSFORMERS, intermediate_size=128, **more)))


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of transformers' CLIPVisionModel to OpenAI's and open_clip's."""
    names = {"class_embedding": "class_embedding", "position_embedding.weight": "positional_embedding"}
    names |= {"patch_embedding.weight": "conv1.weight"}
    out = {f"visual.{new}": state[f"embeddings.{old}"] for old, new in names.items()}
    for old, new in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        out |= {f"visual.{new}.{leaf}": state[f"{old}.{leaf}"] for leaf in ("weight", "bias")}
    modules = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    modules |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(VIT_OF_TRANSFORMERS["num_hidden_layers"]):
        theirs, ours = f"encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            thirds = [state[f"{theirs}.self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            out[f"{ours}.attn.in_proj_{leaf}"] = torch.cat(thirds)
            out |= {f"{ours}.{new}.{leaf}": state[f"{theirs}.{old}.{leaf}"] for old, new in modules.items()}
    return out


LITE = "tf_efficientnet_lite0"


def efficientnet_lite_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of timm's EfficientNet-Lite0 to those of the packages' files, which have the same order."""
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def block(i: int) -> list[str]:
        expand = [f"_blocks.{i}._expand_conv.weight", *(f"_blocks.{i}._bn0.{leaf}" for leaf in bn)] if i else []
        rest = [f"_blocks.{i}._depthwise_conv.weight", *(f"_blocks.{i}._bn1.{leaf}" for leaf in bn)]
        return [
            *expand,
            *rest,
            f"_blocks.{i}._project_conv.weight",
            *(f"_blocks.{i}._bn2.{leaf}" for leaf in bn),
        ]

    names = ["_conv_stem.weight", *(f"_bn0.{leaf}" for leaf in bn), *(key for i in range(16) for key in block(i))]
    names += ["_conv_head.weight", *(f"_bn1.{leaf}" for leaf in bn), "_fc.weight", "_fc.bias"]
    return dict(zip(names, state.values(), strict=True))


class LightlySimCLR(nn.Module):
    """SimCLR as in lightly's benchmarks (fc is Identity) or its examples (Sequential of children)."""

    def __init__(self, from_benchmark: bool) -> None:
        from lightly.models.modules import SimCLRProjectionHead
        from torchvision.models import resnet18

        super().__init__()
        resnet = resnet18()
        if from_benchmark:
            resnet.fc = nn.Identity()
            self.backbone = resnet
            self.online_classifier = nn.Linear(512, 10)
        else:
            self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 64, 32)


class LightlyMAE(nn.Module):
    """MAE as in lightly's example."""

    def __init__(self) -> None:
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=timm.create_model(NAME, **VIT))
        self.decoder = MAEDecoderTIMM(16, 8, 3, 32, 16, decoder_depth=2, decoder_num_heads=2)


def fb_keys(width: int, depth: int, patch: int, grid: int, part: str, decoder: tuple[int, int] = (512, 8)) -> dict:
    """Return {key: shape} of the files of facebookresearch/mae, from the table of its layout."""

    def block(start: str, d: int) -> dict:
        out = {f"{start}.norm{n}.{p}": (d,) for n in (1, 2) for p in ("weight", "bias")}
        sizes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, (rows, columns) in sizes.items():
            out |= {f"{start}.{name}.weight": (rows, columns), f"{start}.{name}.bias": (rows,)}
        return out

    keys = {"cls_token": (1, 1, width), "pos_embed": (1, grid * grid + 1, width)}
    keys |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        keys |= block(f"blocks.{i}", width)
    if part == "fine-tuned":
        keys |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
        return keys | {"head.weight": (1000, width), "head.bias": (1000,)}
    keys |= {"norm.weight": (width,), "norm.bias": (width,)}
    if part == "full":
        d, layers = decoder
        keys |= {"mask_token": (1, 1, d), "decoder_pos_embed": (1, grid * grid + 1, d)}
        keys |= {"decoder_embed.weight": (d, width), "decoder_embed.bias": (d,)}
        for i in range(layers):
            keys |= block(f"decoder_blocks.{i}", d)
        keys |= {"decoder_norm.weight": (d,), "decoder_norm.bias": (d,)}
        keys |= {"decoder_pred.weight": (3 * patch**2, d), "decoder_pred.bias": (3 * patch**2,)}
    return keys


def foreign_states() -> dict[str, dict[str, Tensor]]:
    """Return a small state dict of each supported layout; that of facebookresearch/mae in its three variants."""
    from torchvision.models import DenseNet, VisionTransformer, mobilenet_v2, resnet18

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 128}
    states = {"timm": timm.create_model(NAME, **VIT).state_dict(), "torchvision ResNet": resnet18().state_dict()}
    states["torchvision DenseNet"] = DenseNet(8, (2, 2, 2, 2), 16, num_classes=7).state_dict()
    states[TORCHVISION] = VisionTransformer(**sizes).state_dict()
    states[TRANSFORMERS] = transformers_mae().state_dict()
    states[f"{TRANSFORMERS}, hub"] = hub_names(states[TRANSFORMERS])
    vit = {k: v for k, v in states[TRANSFORMERS].items() if k.startswith("vit.")}
    states[f"{TRANSFORMERS}, encoder"] = {k.removeprefix("vit."): v for k, v in vit.items()}
    for part in ("encoder", "full", "fine-tuned"):
        states[f"{FACEBOOK_MAE} ({part})"] = {k: torch.zeros(s) for k, s in fb_keys(32, 2, 8, 4, part, (16, 2)).items()}
    states[DINOV2] = transformers_dinov2(True).state_dict()
    states[CLIP] = transformers_clip().state_dict()
    states[f"{CLIP}, OpenAI's names"] = openai_names(states[CLIP])
    states[MOBILENET] = mobilenet_v2(num_classes=7).state_dict()
    states[EFFICIENTNET_LITE] = efficientnet_lite_names(timm.create_model(LITE, num_classes=7).state_dict())
    states[LIGHTLY_SIMCLR] = LightlySimCLR(True).state_dict()
    states[LIGHTLY_MAE] = LightlyMAE().state_dict()
    return states

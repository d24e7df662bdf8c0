"""MAE's maths against slow loops, closed forms, published counts and transformers' ViT-MAE."""

import copy

import pytest
import torch
from torch import Tensor

from lit_vision.callbacks.reconstructions import reconstruct
from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.methods.keyed_noise import TRAIN, VALIDATION, keyed_noise
from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.mae.network import (
    DecoderBlock,
    masked_patch_loss,
    patch_statistics,
    patches_kept,
    patchify,
    random_masking,
    select_attention_kernel,
    unpatchify,
)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small(**options) -> MAE:
    torch.manual_seed(0)
    defaults = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    return MAE("vit_tiny_patch16_224", VIT, **{**defaults, **options})


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- patches


def test_patchify__order_is_row_column_channel_and_unpatchify_inverts() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    for index in range(6):
        y, x = divmod(index, 3)
        block = images[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.equal(patches[:, index], block.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)


@pytest.mark.parametrize(
    ("patches", "ratio", "nearest", "truncated"),
    [
        (196, 0.75, 49, 49),
        (256, 0.75, 64, 64),
        (64, 0.75, 16, 16),
        (49, 0.75, 12, 12),
        (100, 0.9, 10, 9),
        (100, 0.8, 20, 19),
        (50, 0.8, 10, 9),
        (10, 0.9, 1, 0),
    ],
)
def test_patches_kept__rule_and_official_truncation(patches, ratio, nearest, truncated) -> None:
    assert patches_kept(patches, ratio) == nearest
    if truncated:
        assert patches_kept(patches, ratio, truncate=True) == truncated
    else:
        with pytest.raises(UserError, match="mask_ratio"):
            patches_kept(patches, ratio, truncate=True)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_patches_kept__refuses_nothing_kept_and_nothing_masked(ratio: float) -> None:
    with pytest.raises(UserError, match="mask_ratio"):
        patches_kept(16, ratio)


def test_random_masking__invariants() -> None:
    noise = torch.rand(5, 16)
    ids_keep, ids_restore, mask, shuffle = random_masking(noise, 4)
    torch.testing.assert_close(shuffle, noise.argsort(dim=1))
    assert torch.equal(mask.sum(1), torch.full((5,), 12.0))
    shuffled = noise.sort(dim=1).values
    assert torch.equal(shuffled.gather(1, ids_restore), noise)  # restores the order
    for row in range(5):
        assert set(ids_keep[row].tolist()) == set((mask[row] == 0).nonzero().flatten().tolist())
        assert noise[row][ids_keep[row]].max() < noise[row][mask[row] == 1].min()


# --- noise


def reference_noise(key: tuple[int, ...], patches: int, seed: int, stream: int) -> list[float]:
    """SplitMix64 in Python integers, without int64 wrap-around."""
    golden, top = 0x9E3779B97F4A7C15, 2**64

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % top
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % top
        return x ^ (x >> 31)

    state = 0
    for part in (seed, stream, *key):
        state = mix(((state ^ (part % top)) + golden) % top)
    return [(mix((state + i * golden) % top) >> 40) * 2**-24 for i in range(1, patches + 1)]


def test_keyed_noise__slow_reference() -> None:
    keys = [(0, 0, 0), (3, 17, 1), (10**6, 2**40, 0)]
    for seed, stream in ((0, TRAIN), (12345678901234567890, VALIDATION), (-1, TRAIN)):
        expected = torch.tensor([reference_noise(k, 9, seed, stream) for k in keys])
        assert torch.equal(keyed_noise(torch.tensor(keys), 9, seed, stream), expected)


def test_keyed_noise__depends_on_the_key_alone() -> None:
    keys = torch.tensor([(e, i, 0) for e in range(3) for i in range(50)])
    noise = keyed_noise(keys, 64, seed=1)
    order = torch.randperm(len(keys))
    assert torch.equal(keyed_noise(keys[order], 64, seed=1), noise[order])
    assert torch.equal(keyed_noise(keys[7:9], 64, seed=1), noise[7:9])
    everything = [
        noise,
        keyed_noise(keys, 64, seed=0),
        keyed_noise(keys, 64, 1, VALIDATION),
        keyed_noise(keys, 64, 0, 1),
    ]
    rows = torch.cat(everything)
    assert len(rows.unique(dim=0)) == len(rows)


def test_keyed_noise__is_uniform_and_unrelated_between_neighbours() -> None:
    keys = torch.stack([torch.zeros(4000).long(), torch.arange(4000), torch.zeros(4000).long()], dim=1)
    noise = keyed_noise(keys, 16, seed=0).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.005)  # 4.4 standard errors
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert torch.corrcoef(noise.T).sub(torch.eye(16)).abs().max() < 0.08  # patches; 5 standard errors
    assert abs(torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1]) < 0.08  # samples
    visible = torch.stack([mask == 0 for mask in random_masking(noise, 4)[2]]).double().mean(0)
    assert (visible - 0.25).abs().max() < 0.035  # every patch is visible equally often


# --- loss


@pytest.mark.parametrize("norm_pix", [True, False])
def test_masked_patch_loss__slow_loop(norm_pix: bool) -> None:
    patches, pred = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 1, 0]])
    errors = []
    for b in range(2):
        for i in range(5):
            if mask[b, i]:
                t = patches[b, i]
                if norm_pix:
                    mean = sum(t) / 12
                    t = (t - mean) / (sum((t - mean) ** 2) / 11 + 1e-6) ** 0.5
                errors.append(sum((pred[b, i] - t) ** 2) / 12)
    torch.testing.assert_close(masked_patch_loss(patches, pred, mask, norm_pix), sum(errors) / len(errors))


@pytest.mark.parametrize(("patch", "value"), [(16, 0.998698), (14, 0.998299), (4, 0.979167)])
def test_masked_patch_loss__zero_prediction_has_closed_form(patch: int, value: float) -> None:
    """Closed form (n - 1) / n * var / (var + 1e-6), n = 3 P^2; a constant patch gives 0."""
    patches = torch.randn(1, 2, 3 * patch**2)
    loss = masked_patch_loss(patches, torch.zeros_like(patches), torch.ones(1, 2))
    assert loss.item() == pytest.approx(value, abs=5e-6)
    flat = torch.full_like(patches, 0.5)
    assert masked_patch_loss(flat, torch.zeros_like(flat), torch.ones(1, 2)).item() == pytest.approx(0, abs=1e-6)


def test_masked_patch_loss__at_least_float32() -> None:
    patches = torch.randn(1, 4, 12).bfloat16()
    assert masked_patch_loss(patches, patches, torch.ones(1, 4)).dtype == torch.float32


# --- the model


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "trainable"),
    [
        ("vit_base_patch16_224", 85_798_656, 26_109_184, 111_655_680),
        ("vit_large_patch16_224", 303_301_632, 26_240_256, 329_239_296),
        ("vit_huge_patch14_224", 630_764_800, 26_309_708, 656_613_964),
    ],
)
def test_mae__published_parameter_counts(name, encoder, decoder, trainable) -> None:
    with torch.device("meta"):
        mae = MAE(name)
    assert count(mae.backbone) == encoder
    assert count(mae.decoder) == decoder
    assert sum(p.numel() for p in mae.parameters() if p.requires_grad) == trainable
    frozen = [n for n, p in mae.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.model.pos_embed", "decoder.pos_embed"]


def test_mae__cifar_vit_small_count() -> None:
    with torch.device("meta"):
        mae = MAE("vit_small_patch16_224", {"img_size": 32, "patch_size": 4})
    assert (count(mae.backbone), count(mae.decoder)) == (21_338_496, 25_475_632)


def test_mae__initial_loss_is_the_published_one() -> None:
    """About 1 + 2d / (d + 3 P^2) = 1.80 with the paper's decoder and 16-pixel patches; ViT-Ti, one image of noise."""
    torch.manual_seed(0)
    mae = MAE("vit_tiny_patch16_224")
    with torch.no_grad():
        loss = mae(torch.randn(1, 3, 224, 224))[0].item()
    assert loss == pytest.approx(1.80, abs=0.06)


def test_mae__init_is_the_papers() -> None:
    mae = small()
    weight = mae.backbone.model.blocks[0].mlp.fc1.weight  # (128, 32)
    bound = (6 / (128 + 32)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    patch = mae.backbone.model.patch_embed.proj.weight  # as the Linear (32, 192)
    bound = (6 / (32 + 192)) ** 0.5
    assert 0.98 * bound < patch.abs().max() <= bound
    for name, p in mae.named_parameters():
        if name.endswith(".bias") and "patch_embed" not in name:
            assert p.abs().max() == 0, name
    assert mae.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.6)


def test_forward__shapes_and_gradients_on_masked_predictions_only() -> None:
    mae, images = small(), torch.randn(2, 3, 32, 32)
    loss, pred, mask = mae(images, torch.rand(2, 16))
    assert (loss.shape, pred.shape, mask.shape) == ((), (2, 16, 192), (2, 16))
    (gradient,) = torch.autograd.grad(loss, pred, retain_graph=True)
    assert gradient[mask == 0].abs().max() == 0
    assert gradient[mask == 1].abs().amax(dim=-1).min() > 0
    loss.backward()
    without = [n for n, p in mae.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)]
    assert without == []
    assert mae.backbone.model.pos_embed.grad is None


def test_forward__the_encoder_never_sees_masked_pixels() -> None:
    mae, images, noise = small(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    ids_keep, _, mask, _ = random_masking(noise, mae.num_keep)
    other = torch.where(mask[..., None].bool(), torch.randn(2, 16, 192), patchify(images, 8))
    with torch.no_grad():
        latents = [mae.backbone.forward_tokens(x, ids_keep) for x in (images, unpatchify(other, 8, (4, 4)))]
        predictions = [mae(x, noise)[1] for x in (images, unpatchify(other, 8, (4, 4)))]
    assert latents[0].shape == (2, 1 + 4, 32)
    assert torch.equal(*latents)
    assert torch.equal(*predictions)


def transformers_weights(mae: MAE) -> dict[str, Tensor]:
    """Our weights under transformers' names (its ViT-MAE splits q, k, v)."""
    out = {}
    blocks = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    for name, value in mae.state_dict().items():
        name = (
            name.replace("backbone.model.", "vit.")
            .replace("vit.blocks", "vit.layers")
            .replace("vit.norm", "vit.layernorm")
        )
        name = name.replace("decoder.blocks", "decoder.decoder_layers").replace(
            "vit.cls_token", "vit.embeddings.cls_token"
        )
        name = name.replace("vit.pos_embed", "vit.embeddings.position_embeddings")
        name = name.replace("vit.patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
        for part in ("embed", "norm", "pred", "pos_embed"):
            name = name.replace(f"decoder.{part}", f"decoder.decoder_{part}")
        for ours, theirs in blocks.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for letter, third in zip("qkv", value.chunk(3)):
                out[name.replace("attn.qkv", f"attention.{letter}_proj")] = third
        elif name not in ("mean", "std"):
            out[name] = value
    return out


def test_forward__equals_transformers_vit_mae() -> None:
    from transformers.models.vit_mae.configuration_vit_mae import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTraining

    mae = small()
    for p in mae.parameters():
        torch.nn.init.normal_(p, std=0.3)  # all of them, biases and norms too
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(
        image_size=32, patch_size=8, layer_norm_eps=1e-6, decoder_intermediate_size=64, **encoder, **decoder
    )
    theirs = ViTMAEForPreTraining(config).eval()
    theirs.load_state_dict(transformers_weights(mae))
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    for norm_pix in (True, False):
        mae.norm_pix_loss = theirs.config.norm_pix_loss = norm_pix
        with torch.no_grad():
            loss, pred, mask = mae(images, noise)
            reference = theirs(images, noise=noise)
        torch.testing.assert_close(mask, reference.mask)
        torch.testing.assert_close(loss, reference.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pred, reference.logits, atol=1e-5, rtol=1e-5)


def gradients(mae: MAE, loss: Tensor) -> dict[str, Tensor]:
    mae.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in mae.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options", [{}, {"norm_pix_loss": False}, {"decoder_depth": 3, "mask_ratio": 0.5}, {"checkpointing": True}]
)
def test_loss__equals_the_loss_of_forward(options) -> None:
    mae = small(**options).double()
    images, noise = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.rand(3, 16)
    full, part = mae(images, noise)[0], mae.loss(images, noise)
    torch.testing.assert_close(part, full)
    expected = gradients(mae, full)
    for name, got in gradients(mae, part).items():
        torch.testing.assert_close(got, expected[name], msg=name)


def test_checkpointing__stores_less_for_backward_and_gives_the_same_gradients() -> None:
    images, noise, stored, seen = torch.randn(3, 3, 32, 32), torch.rand(3, 16), [], []
    for checkpointing in (False, True):
        mae = small(checkpointing=checkpointing, decoder_depth=3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = mae.loss(images, noise)
        stored.append(sum(sizes))
        seen.append(gradients(mae, loss))
    assert stored[1] < 0.5 * stored[0]
    for name, expected in seen[0].items():
        torch.testing.assert_close(seen[1][name], expected, msg=name)


def test_block__first_equals_the_end_of_the_full_output() -> None:
    torch.manual_seed(0)
    block, x = DecoderBlock(16, 4, qkv_bias=True).double(), torch.randn(2, 7, 16, dtype=torch.float64)
    for fused in (True, False):
        block.attn.fused_attn = fused
        for first in (0, 1, 5):
            torch.testing.assert_close(block(x, first), block(x)[:, first:])


def test_select_attention_kernel__plain_products_on_cpu_for_bfloat16_and_few_tokens() -> None:
    mae = small()

    def fused(device: str, dtype: torch.dtype, tokens: int) -> bool:
        select_attention_kernel(mae, device, dtype, tokens)
        (answer,) = {part.fused_attn for part in mae.modules() if hasattr(part, "fused_attn")}
        return answer

    assert fused("cpu", torch.float32, 197)
    assert not fused("cpu", torch.float32, 50)
    assert not fused("cpu", torch.bfloat16, 197)
    assert fused("cuda", torch.bfloat16, 17)  # any other device: the kernel of PyTorch's choice


def test_attention_kernels_are_chosen_once_and_again_for_another_dtype(monkeypatch) -> None:
    mae, calls = small(), []
    monkeypatch.setattr("lit_vision.methods.mae.network.select_attention_kernel", lambda *args: calls.append(args[1:3]))
    images = torch.randn(2, 3, 32, 32)
    for _ in range(3):
        mae(images)
    with torch.autocast("cpu", torch.bfloat16):
        mae(images)
        mae(images)
    assert calls == [("cpu", torch.float32)] * 2 + [("cpu", torch.bfloat16)] * 2  # encoder and decoder each


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile__same_loss_and_gradients(dtype: torch.dtype) -> None:
    """The C++ compiler runs for about a minute. Copies have no compiled code, and state keys do not change."""
    batch = batch_of(torch.tensor([[2, i, 0] for i in range(6)]))
    seen = []
    for compiled in (False, True):
        mae = small(compile=compiled)
        assert list(mae.state_dict()) == list(small().state_dict())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = mae.batch_loss(mae.on_after_batch_transfer(batch, 0), TRAIN)
        seen.append((loss.detach(), gradients(mae, loss)))
    assert copy.deepcopy(mae)._compiled is None
    assert mae._compiled is not None
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(seen[1][0], seen[0][0], **near)
    for name, expected in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], expected, msg=name, **near)


def test_overfits_one_batch() -> None:
    """One smooth picture with the same mask in every step: the hidden pixels are memorised."""
    mae = small(decoder_width=32, norm_pix_loss=False)
    grid = torch.linspace(-1, 1, 32)
    images = torch.stack([torch.outer(grid, grid * k).sin().expand(3, 32, 32) for k in (1.0, 2.0, 3.0, 4.0)])
    noise = torch.rand(4, 16)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        loss = mae(images, noise)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert losses[-1] < 0.2 * images.var()  # far better than one gray


# --- as a LightningModule


def batch_of(keys: Tensor, views: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, views, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return {"images": images[keys[:, 1]], "label": torch.full((len(keys),), -1), "key": keys}


def test_batch_loss__masks_come_from_keys_not_from_the_batch() -> None:
    mae = small()
    keys = torch.tensor([[2, i, 0] for i in range(6)])
    joined = mae.batch_loss(mae.on_after_batch_transfer(batch_of(keys), 0), TRAIN)
    torch.manual_seed(99)
    halves = [
        mae.batch_loss(mae.on_after_batch_transfer(batch_of(k), 0), TRAIN) for k in (keys[[5, 1, 3]], keys[[0, 2, 4]])
    ]
    torch.testing.assert_close(joined, sum(halves) / 2)
    again = mae.batch_loss(mae.on_after_batch_transfer(batch_of(keys + torch.tensor([1, 0, 0])), 0), TRAIN)
    assert abs(again - joined) > 1e-4  # another epoch, other masks
    validation = mae.batch_loss(mae.on_after_batch_transfer(batch_of(keys), 0), VALIDATION)
    assert abs(validation - joined) > 1e-4


def test_batch_loss__each_view_has_another_mask() -> None:
    mae, keys = small(), torch.tensor([[0, 1, 0], [0, 2, 0]])
    batch = mae.on_after_batch_transfer(batch_of(keys, views=2), 0)
    seen = []
    original = mae.backbone.forward_tokens
    mae.backbone.forward_tokens = lambda images, ids: seen.append(ids) or original(images, ids)
    mae.batch_loss(batch, TRAIN)
    assert seen[0].shape == (4, 4)
    assert len(seen[0].sort(dim=1).values.unique(dim=0)) > 1


def test_reconstruct__exact_prediction_gives_the_original_picture() -> None:
    """If the network predicts the normalised patches exactly, the reconstruction is the original."""
    mae = small()
    pixels = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8)
    images = normalize(pixels, mae.mean, mae.std)[:, 0]
    patches = patchify(images, 8)
    mean, scale = patch_statistics(patches)
    noise = torch.rand(2, 16)
    targets = (patches - mean) / scale
    mae.decoder.forward = lambda latent, shuffle, hidden_only: targets.gather(1, shuffle[..., None].expand_as(targets))
    original, masked, reconstruction = reconstruct(mae, images, noise)
    assert original.dtype == torch.uint8
    assert torch.equal(original, pixels[:, 0])
    assert torch.equal(reconstruction, original)
    hidden = random_masking(noise, mae.num_keep)[2].view(2, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2).bool()
    assert torch.equal(masked[~hidden], original[~hidden])
    assert (masked[hidden] == 128).all()
    assert torch.equal(
        reconstruct(mae, images)[1], reconstruct(mae, images)[1]
    )  # without noise: the same masks each time


def test_configure_optimizers__decays_tokens_as_the_official_code(monkeypatch) -> None:
    mae, seen = small(), {}
    monkeypatch.setattr(
        "lit_vision.optim.optimizer_and_schedule",
        lambda module, groups, **options: seen.update(groups=groups, **options),
    )
    mae.configure_optimizers()
    names = {id(p): n for n, p in mae.named_parameters()}
    decayed, exempt = [
        {names[id(p)] for p in g["params"]} for g in sorted(seen["groups"], key=lambda g: -g["weight_decay"])
    ]
    assert {"backbone.model.cls_token", "decoder.mask_token", "decoder.pred.weight"} <= decayed
    assert {"backbone.model.norm.weight", "decoder.pred.bias"} <= exempt
    assert not any("pos_embed" in n for n in decayed | exempt)
    assert (seen["base_lr"], tuple(seen["betas"]), seen["warmup_epochs"]) == (1.5e-4, (0.9, 0.95), 40)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backbone": "resnet18"}, "pool"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_args": {"pool": "avg"}}, "backbone: .*vit_tiny_patch16_224"),
        ({"backbone": "vit_small_patch14_reg4_dinov2"}, "backbone: .*vit_small_patch14_reg4_dinov2"),
        ({"backbone": "vit_tiny_patch16_224", "decoder_width": 100, "decoder_heads": 16}, "decoder_width"),
        ({"backbone": "vit_tiny_patch16_224", "mask_ratio": 0.999}, "mask_ratio"),
    ],
)
def test_errors__name_the_key(options, expected) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=expected):
        MAE(**options)


def test_bf16_autocast__loss_is_float32_and_near() -> None:
    mae, images, noise = small(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mae(images, noise)[0]
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.item() == pytest.approx(mae(images, noise)[0].item(), rel=0.02)

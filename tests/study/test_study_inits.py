"""Inits of a study: parsing of --inits, names of files, sides of images, and the networks' multiply-adds."""

import pytest

from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UsageError
from lit_vision.study.costs import forward_multiply_adds
from lit_vision.study.inits import choose_public, parse_inits
from lit_vision.study.presets import PUBLIC, PUBLIC_GPU, PUBLIC_PHOTOGRAPHS, preset_for
from lit_vision.study.sizes import choose_sizes


def test_parse__lists_are_joined_baselines_left_out_and_bases_come_first() -> None:
    inits = parse_inits(["mae, pixels", "lejepa@timm:resnet18,simclr@public,scratch-vit", "mae"], "timm:resnet34")
    assert [(init.name, init.method, init.base) for init in inits] == [
        ("mae", "mae", ""),
        ("timm:resnet18", "", ""),
        ("lejepa@timm:resnet18", "lejepa", "timm:resnet18"),
        ("timm:resnet34", "", ""),
        ("simclr@timm:resnet34", "simclr", "timm:resnet34"),
    ]


def test_parse__files_and_runs_get_short_printable_unique_names(tmp_path) -> None:
    files = ["a/w.safetensors", "b/w.safetensors", "b/pixels (ö), 2.ckpt", "run/checkpoints/best.ckpt", "77.ckpt"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [f"simclr@{tmp_path / files[0]}", *(str(tmp_path / name) for name in files), str(tmp_path / "a/../77.ckpt")]
    names = ["w", "simclr@w", "w-2", "weights-pixels_2", "run", "weights-77"]
    assert [init.name for init in parse_inits(given)] == names
    assert parse_inits(str(tmp_path / "run"))[0].name == "run"  # the folder is what best.ckpt is named after


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ("moco", "moco"),
        ("resnet18", "timm:resnet18"),
        ("timm:", "timm:"),
        ("simclr@mae", "after @"),
        ("simclr@public", "--pretrained is off"),
        ("simclr@none.ckpt", "simclr@none.ckpt"),
        ("moco@timm:resnet18", "moco@timm"),
        ("mae@timm:resnet18", "plain ViT"),
    ],
)
def test_parse__a_wrong_item_is_named(item: str, named: str) -> None:
    with pytest.raises(UsageError, match=r"^--inits: ") as error:
        parse_inits(f"mae,{item}")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("side", "gpu", "given", "train", "frozen", "named"),
    [
        (28, False, {}, 28, 96, "typically have 28"),
        (3, True, {}, 16, 96, "typically have 3"),
        (375, False, {}, 96, 224, "photographs on a CPU"),
        (375, True, {}, 224, 224, "photographs on a GPU"),
        (90, False, {}, 80, 224, "typically have 90"),
        (375, False, {"size": 64}, 64, 224, "--size"),
        (375, False, {"size": 320, "frozen_size": 128}, 320, 128, "--frozen_size"),
    ],
)
def test_sizes__follow_from_images_and_machine_and_are_said(side, gpu, given, train, frozen, named) -> None:
    sizes = choose_sizes(side, ["mae", "timm:resnet18"], gpu, **given)
    assert (sizes.train, sizes.frozen) == (train, frozen)
    assert named in sizes.reason
    assert str(frozen) in sizes.reason
    assert "frozen" not in choose_sizes(side, ["mae"], gpu, **given).reason


def test_sizes__a_side_that_no_network_takes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--size: 100 .*give 112"):
        choose_sizes(375, [], False, size=100)


def test_public_weights_follow_from_images_and_machine() -> None:
    chosen = [choose_public(28, True), choose_public(300, False), choose_public(300, True)]
    assert chosen == [f"timm:{name}" for name in (PUBLIC, PUBLIC_PHOTOGRAPHS, PUBLIC_GPU)]


def test_preset__networks_of_photographs_on_a_cpu_cost_at_most_100_million_multiply_adds() -> None:
    preset = preset_for(96)
    counts = [forward_multiply_adds(Backbone(net.backbone, **net.args), 96) for net in (preset.cnn, preset.vit)]
    # by hand: a ViT's layers are 12 D^2 a token and block, and its patches 768 D each
    assert counts[1] == 37 * 5 * 12 * 192**2 + 36 * 768 * 192
    assert all(50e6 < count <= 100e6 for count in counts)


def test_preset__an_init_with_weights_of_its_own_has_its_network_and_sides() -> None:
    preset = preset_for(96, frozen=224)
    assert preset.network("simclr@timm:resnet18") == preset.network("timm:resnet18")
    sides = {name: (preset.side(name), preset.frozen_side(name)) for name in ("simclr", "timm:r", "simclr@timm:r")}
    assert sides == {"simclr": (96, 96), "timm:r": (96, 224), "simclr@timm:r": (96, 96)}
    own, others = preset.pretraining_options("simclr"), preset.pretraining_options("simclr@timm:r")
    assert others == {**own, "lr": pytest.approx(own["lr"] * preset.continued_lr)}
    assert preset_for(32).frozen_side("timm:r") == 96  # as in every table so far

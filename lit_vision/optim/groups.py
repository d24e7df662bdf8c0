"""Parameter groups: with and without weight decay, and with learning rates that fall from the head to the input."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lit_vision.errors import UserError

# Learned tokens and positions are no weights of a linear map, and fine-tuning (He et al. 2022, code) exempts them.
# Official MAE pre-training exempts only what is 1-D or named .bias, so it decays cls_token and mask_token:
# methods/mae/mae.py passes that rule.
NO_DECAY = ("cls_token", "mask_token", "pos_embed", "reg_token", "dist_token", "relative_position_bias_table")


def is_no_decay(name: str, parameter: Tensor, names: Iterable[str] = NO_DECAY) -> bool:
    """True for biases and norm gains (at most one dimension) and for parameters whose last name part is in `names`."""
    return parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in names


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    no_decay: Callable[[str, Tensor], bool] | Iterable[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Return two parameter groups, with and without weight decay.

    Frozen parameters are in neither; an empty group is left out.

    Args:
        named_parameters: of the module, or of several chained.
        weight_decay: of the decayed group; 0 or more.
        no_decay: names (last dotted part) that are exempt in addition to all 1-D parameters, or a predicate
            (name, parameter) that replaces this rule.

    Returns:
        A list of {"params", "name", "weight_decay", "lr_scale": 1.0} for `optimizer_and_schedule`.

    Raises:
        UserError: nothing is trainable, or `weight_decay` touches no parameter.
    """
    return layer_decay_groups(named_parameters, [], weight_decay, 1.0, no_decay)


def layer_decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    layers: Sequence[Iterable[str]],
    weight_decay: float,
    layer_decay: float,
    no_decay: Callable[[str, Tensor], bool] | Iterable[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Return parameter groups whose learning rate falls from the head to the patch embedding.

    Group i of n gets lr_scale = layer_decay^(n - 1 - i). A ViT with 12 blocks has n = 14: patch embedding 0, block i at
    i + 1, final norm and head at 13. Source: Bao et al. 2022, arXiv:2106.08254; He et al. 2022, Table 9 (0.65^13 =
    0.003697 for ViT-B's patch embedding).

    Args:
        named_parameters: all parameters of the method, in a fixed order.
        layers: parameter names per layer, from the input to the output, with the names that `named_parameters` uses.
            Names in no layer (the head) belong to the last one.
        weight_decay: of the parameters that are decayed.
        layer_decay: in (0, 1]; 1 is no layer decay.
        no_decay: as in `decay_groups`.

    Returns:
        A list of {"params", "name", "weight_decay", "lr_scale"}, input to output, decayed before exempt.

    Raises:
        UserError: nothing is trainable; `weight_decay` or a `layer_decay` below 1 touches no parameter; a layer names
            an unknown parameter.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(
            f"layer_decay: {layer_decay} is not in (0, 1]; give 1 for none, 0.65 to 0.9 to fine-tune a transformer"
        )
    if weight_decay < 0:
        raise UserError(f"weight_decay: {weight_decay} is negative; give 0 or more")
    is_exempt = no_decay if callable(no_decay) else lambda name, p, names=tuple(no_decay): is_no_decay(name, p, names)
    named = list(named_parameters)
    layers = layers if layer_decay < 1 else []  # with 1 all layers have the same rate
    last = max(0, len(layers) - 1)
    layer_of = {name: i for i, names in enumerate(layers) for name in names}
    if unknown := sorted(layer_of.keys() - {name for name, _ in named}):
        raise UserError(
            f"layer_decay: layer_groups() names parameters that the model does not have: {', '.join(unknown[:3])}; "
            "please report this backbone, and use layer_decay 1"
        )
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            key = (layer_of.get(name, last), weight_decay == 0 or is_exempt(name, parameter))
            found.setdefault(key, []).append(parameter)
    if not found:
        raise UserError("tune: no parameter is trainable; choose another value of tune")
    if weight_decay > 0 and all(exempt for _, exempt in found):
        raise UserError(
            f"weight_decay: {weight_decay} touches no parameter (all trainable ones are biases, norms or tokens); "
            "set it to 0"
        )
    if layer_decay < 1 and all(layer == last for layer, _ in found):
        raise UserError(f"layer_decay: {layer_decay} touches no parameter (only the last layer trains); set it to 1")
    groups = []
    for layer, exempt in sorted(found):
        part = "no_decay" if exempt else "decay"
        groups.append(
            {
                "params": found[layer, exempt],
                "name": f"layer_{layer:02d}/{part}" if layer_decay < 1 else part,
                "weight_decay": 0.0 if exempt else weight_decay,
                "lr_scale": layer_decay ** (last - layer),
            }
        )
    return groups

"""Networks by name: `build_model` and `list_models`.

Importing this module registers the families; it needs torch.
"""

# registers the builders, in the order of list_models
from mobilenet_exp.models import v1, v2, v3, v3_edgetpu, kuanwang_v3, v4  # noqa: F401, I001
from mobilenet_exp.models.network import MODELS, MobileNet, set_stochastic_depth

# Options and the values at which they change nothing.
NEUTRAL = {"activation": None, "width_rule": "paper", "hswish": "table", "head_width": None}


def build_model(
    name: str,
    *,
    width_mult: float = 1.0,
    num_classes: int = 1000,
    dropout: float | None = None,
    stem_stride: int = 2,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    stochastic_depth: float = 0.0,
    **args: object,
) -> MobileNet:
    """Build a network by registry name: images (N, 3, H, W), H and W >= 32, to logits.

    `width_mult` > 0 is the paper's alpha; `dropout` in [0, 1), `bn_eps` and
    `bn_momentum` (PyTorch's sense) are the paper's where None; `stem_stride=1` keeps
    small images from shrinking away. `stochastic_depth` is the last block's probability
    of dropping its branch in training. `args` are the family's own options, e.g.
    `activation="relu6"` for v1, `head_width=1280` for v3_small.
    Raises InputError for an unknown name or option and for a value out of range.
    """
    MODELS.check_options(name, args, "model.args")
    model = MODELS.get(name)(
        width_mult=width_mult,
        num_classes=num_classes,
        dropout=dropout,
        stem_stride=stem_stride,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        **args,
    )
    model.name, model.width_mult, model.args = name, width_mult, args
    set_stochastic_depth(model, stochastic_depth)
    return model


def list_models() -> list[str]:
    """Return the registry names, oldest generation first."""
    return MODELS.names()


def telling_options(args: dict[str, object]) -> dict[str, object]:
    """Return the options that make it another network than the one without options."""
    return {
        key: value for key, value in args.items() if key not in NEUTRAL or NEUTRAL[key] != value
    }

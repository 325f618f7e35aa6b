"""The call of kuan-wang/pytorch-mobilenet-v3, which works as in that repository's README."""

from typing import Any

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models import MobileNet, build_model
from mobilenet_exp.weights.layouts import LAYOUTS, to_ours


def mobilenetv3(mode: str = "small", width_mult: float = 1.0, **options: Any) -> MobileNet:
    """Build kuan-wang's own variant of V3 by its old call, `mobilenetv3(mode="small")`.

    `load_state_dict` of this network takes that repository's checkpoints as they are
    (and ours): `net.load_state_dict(torch.load("mobilenetv3_small_67.4.pth.tar"))`.
    `mode` is `large` or `small`; the rest is `build_model`'s. The paper's nets are
    `build_model("v3_large")` and `build_model("v3_small")`. Raises InputError for
    another mode.
    """
    if mode not in ("large", "small"):
        raise InputError("mode", mode, "not known; allowed: large, small")
    model = build_model(f"kuanwang_v3_{mode}", width_mult=width_mult, **options)
    model.register_load_state_dict_pre_hook(_translate)
    return model


def _translate(model: MobileNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename kuan-wang's keys to ours in place; torch then loads strictly, as ever."""
    layout = LAYOUTS["kuan_wang"]
    theirs = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    if not layout.is_of(set(theirs)):
        return
    ours = to_ours(theirs, model, layout, "state_dict")
    for key in theirs:
        del state[f"{prefix}{key}"]
    state.update({f"{prefix}{key}": value for key, value in ours.items()})

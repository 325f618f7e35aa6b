"""A network of three blocks with all that training could get wrong, for runs of milliseconds.

Registered as `tiny`: `model.name=tiny run.imports=[tiny_net]`.
"""

from mobilenet_exp.models.block_specs import Bottleneck
from mobilenet_exp.models.network import MODELS, Design, MobileNet

DESIGN = Design(
    stem=16,
    rows=(
        Bottleneck(expanded=32, out=16, stride=2, se="conv"),
        Bottleneck(expanded=32, out=16, act="hswish"),
        Bottleneck(expanded=32, out=16, kernel=5),
    ),
    act="hswish",
    last_conv=32,
    hidden=64,
    dropout=0.2,
    bn_eps=0.001,
    bn_momentum=0.01,
)


@MODELS.register("tiny")
def tiny(**options) -> MobileNet:
    """Build it."""
    return MobileNet(DESIGN, **options)

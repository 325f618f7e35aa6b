"""Networks of timm, `model=timm model.args.arch=NAME`: trained and counted as ours are."""

from torch import nn

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.network import MODELS


@MODELS.register("timm")
def timm_network(
    num_classes: int, dropout: float | None, stochastic_depth: float, *, arch: str
) -> nn.Module:
    """Build timm's network `arch`, as lcnet_100, with random weights as timm draws them.

    Raises InputError for a name that timm does not have, and for an option that the network
    does not take.
    """
    # timm takes most of a second to import
    import timm

    if arch not in timm.list_models():
        problem = "not a network of timm; timm.list_models('*lcnet*') lists some"
        raise InputError("model.args.arch", arch, problem)
    asked = {"drop_rate": dropout, "drop_path_rate": stochastic_depth or None}
    options = {key: value for key, value in asked.items() if value is not None}
    try:
        return timm.create_model(arch, num_classes=num_classes, **options)
    except TypeError as error:
        problem = f"does not take dropout or stochastic depth: {error}"
        raise InputError("model.args.arch", arch, problem) from error

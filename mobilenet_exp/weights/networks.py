"""From a configuration to a network, its weights aside. Knows no data and no run."""

from dataclasses import asdict, replace

from mobilenet_exp.config.schema import Config, EvalConfig
from mobilenet_exp.models import MobileNet, build_model
from mobilenet_exp.models.dialect import adopt, dialect_of


def config_model(config: Config | EvalConfig, num_classes: int) -> MobileNet:
    """Build the network that a config asks for, on the CPU."""
    options = asdict(config.model) | {"num_classes": num_classes}
    args = options.pop("args")
    return build_model(**options, **args)


def adopt_asked(model: MobileNet, config: Config | EvalConfig) -> None:
    """Let a BN eps or an activation that the config gives win over the weights' own."""
    dialect = dialect_of(model)
    asked = {"bn_eps": config.model.bn_eps, "activation": config.model.args.get("activation")}
    adopt(model, replace(dialect, **{key: value for key, value in asked.items() if value}))

"""Every network by name, what it costs, and how it is run."""

from mobilenet_exp.models.build import build_model, list_models
from mobilenet_exp.models.network import MODELS, MobileNet

__all__ = ["MODELS", "MobileNet", "build_model", "list_models"]

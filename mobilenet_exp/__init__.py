"""MobileNets as their papers' tables say: build them, count them, train them.

The public names are imported on first use, so that `import mobilenet_exp` costs nothing.
"""

from importlib import import_module

_HOME = {
    "build_model": "mobilenet_exp.models.build",
    "list_models": "mobilenet_exp.models.build",
    "profile_model": "mobilenet_exp.models.profiling",
    "paper_row": "mobilenet_exp.papers.rows",
    "load_weights": "mobilenet_exp.weights.load",
    "export_weights": "mobilenet_exp.weights.layout_export",
    "model_from_checkpoint": "mobilenet_exp.weights.load",
    "mobilenetv3": "mobilenet_exp.weights.compat",
    "compose": "mobilenet_exp.cli",
    "train": "mobilenet_exp.training.train",
    "evaluate": "mobilenet_exp.evaluation.job",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

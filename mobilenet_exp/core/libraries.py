"""Libraries that not every installation has."""

import importlib
from typing import Any

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.streams import silenced

ADVICE = "pip install 'mobilenet-exp[deploy]'"


def library(name: str, key: str, value: object) -> Any:
    """Import an optional library. Raises InputError, under `key`, that says how to install it."""
    try:
        # some greet
        with silenced():
            return importlib.import_module(name)
    except ImportError as error:
        problem = f"needs {name}, which is not installed: {ADVICE}"
        raise InputError(key, value, problem) from error

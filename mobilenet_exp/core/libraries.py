"""Libraries that not every installation has."""

import importlib
import sys
from typing import Any

from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.core.streams import silenced

ADVICE = "pip install 'mobilenet-exp[deploy]'"


def library(name: str, key: str, value: object) -> Any:
    """Import an optional library.

    Raises InputError, under `key`, that says how to install it, or what keeps it from loading.
    """
    try:
        # some print a greeting when they are imported
        with silenced():
            return importlib.import_module(name)
    except Exception as error:
        package = name.partition(".")[0]
        problem = f"needs {name}, which is not installed: {ADVICE}"
        if not (isinstance(error, ModuleNotFoundError) and (error.name or "") in (package, name)):
            # built for another torch, or without a library of the system
            problem = f"needs {name}, which cannot be imported: {first_line(error)}"
        raise InputError(key, value, problem) from error


def clear_cache(name: str, function: str) -> None:
    """Empty the cache of a function of a library that was imported, where it has one."""
    found = getattr(sys.modules.get(name), function, None)
    if clear := getattr(found, "cache_clear", None):
        clear()

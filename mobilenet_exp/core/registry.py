"""Names to builders."""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Generic, TypeVar, get_args, get_origin

from mobilenet_exp.core.errors import InputError, first_line

T = TypeVar("T", bound=Callable)


class Registry(Generic[T]):
    """A mapping from names to builders, filled by decorator and kept in that order.

    `key` is the config key that holds such a name, e.g. `model.name`; it opens the
    error message for a name that is not there.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._builders: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a builder so that `get(name)` returns it. A name is taken once."""
        if name in self._builders:
            raise KeyError(f"{self.key}={name} is registered twice")

        def keep(builder: T) -> T:
            self._builders[name] = builder
            return builder

        return keep

    def get(self, name: str) -> T:
        """Return the builder of `name`. Raises InputError listing the known names."""
        if name not in self._builders:
            raise InputError(self.key, name, f"not known; allowed: {', '.join(self.names())}")
        return self._builders[name]

    def check_options(self, name: str, options: dict[str, object], key: str) -> None:
        """Check options against the keyword-only arguments of `name`'s builder.

        `key` is the config key that holds them. An annotation may carry a range, as
        `Annotated[float, ABOVE_0]`. Raises InputError for an option that is unknown, has
        the wrong type, is out of range, or is required and missing.
        """
        parameters = inspect.signature(self.get(name)).parameters.values()
        known = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
        for option, value in options.items():
            if option not in known:
                allowed = f"allowed: {', '.join(known)}" if known else f"{name} has no options"
                raise InputError(f"{key}.{option}", value, f"not an option of {name}; {allowed}")
            annotation, ranges = known[option].annotation, []
            if get_origin(annotation) is Annotated:
                annotation, *ranges = get_args(annotation)
            members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
            kinds = {get_origin(member) or member for member in members}
            if float in kinds:
                kinds.add(int)
            # True is an int to Python
            fits = bool in kinds if isinstance(value, bool) else isinstance(value, tuple(kinds))
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                raise InputError(f"{key}.{option}", value, f"must be {type_name(annotation)}")
            for each in ranges:
                each.check(f"{key}.{option}", value)
        for option, parameter in known.items():
            if parameter.default is parameter.empty and option not in options:
                raise InputError(f"{key}.{option}", "???", f"must be given for {name}")

    def names(self) -> list[str]:
        return list(self._builders)


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list, as [a,b]",
    dict: "a mapping, as {a:1}",
    type(None): "null",
}

_LISTS = {
    list[float]: "a list of numbers, as [a,b]",
    list[int]: "a list of whole numbers, as [a,b]",
    list[str]: "a list of words, as [a,b]",
}


def type_name(annotation: object) -> str:
    """Describe what a type annotation allows, e.g. `a number or null`."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return " or ".join(
        _LISTS.get(member) or _TYPE_NAMES[get_origin(member) or member] for member in members
    )


def import_modules(names: Iterable[str]) -> None:
    """Import modules of the user's own, which register what they define.

    They are looked up in the current folder too. Raises InputError naming the module that
    cannot be imported, and why.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except Exception as error:
            # whatever the module itself does wrong
            problem = f"cannot be imported: {type(error).__name__}: {first_line(error)}"
            raise InputError("run.imports", name, problem) from error

"""Names to builders. Knows nothing of torch or of what it holds."""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Generic, TypeVar, get_args, get_origin

from mobilenet_exp.core.errors import InputError

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
        """Hold options against the keyword-only arguments of `name`'s builder.

        `key` is the config key that holds them. Raises InputError for one that is not
        known, of another type, or required and not given.
        """
        parameters = inspect.signature(self.get(name)).parameters.values()
        known = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
        for option, value in options.items():
            if option not in known:
                allowed = f"allowed: {', '.join(known)}" if known else "it has none"
                raise InputError(f"{key}.{option}", value, f"not an option of {name}; {allowed}")
            annotation = known[option].annotation
            if not _fits(value, annotation):
                raise InputError(f"{key}.{option}", value, f"must be {type_name(annotation)}")
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


def type_name(annotation: object) -> str:
    """Say in words what a type annotation allows, e.g. `a number or null`."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return " or ".join(_TYPE_NAMES[get_origin(member) or member] for member in members)


def _fits(value: object, annotation: object) -> bool:
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = {get_origin(member) or member for member in members}
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, tuple(kinds))


# Filled by the family modules in `mobilenet_exp.models`.
MODELS: Registry = Registry("model.name")

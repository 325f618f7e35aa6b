"""Names to builders. Knows nothing of torch or of what it holds."""

import inspect
from collections.abc import Callable
from typing import Generic, TypeVar

from mobilenet_exp.errors import InputError

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
        """Refuse options that are not keyword-only arguments of `name`'s builder.

        `key` is the config key that holds them. Raises InputError listing the known ones.
        """
        parameters = inspect.signature(self.get(name)).parameters.values()
        known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        for option, value in options.items():
            if option not in known:
                allowed = f"allowed: {', '.join(known)}" if known else "it has none"
                raise InputError(f"{key}.{option}", value, f"not an option of {name}; {allowed}")

    def names(self) -> list[str]:
        return list(self._builders)


# Filled by the family modules in `mobilenet_exp.models`.
MODELS: Registry = Registry("model.name")

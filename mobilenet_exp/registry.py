"""Names to builders. Knows nothing of torch or of what it holds."""

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

    def names(self) -> list[str]:
        return list(self._builders)


# Filled by the family modules in `mobilenet_exp.models`.
MODELS: Registry = Registry("model.name")

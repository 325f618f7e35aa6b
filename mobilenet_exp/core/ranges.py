"""The values that a key or an option may have, where its type alone does not say so.

The configuration's keys carry them in `config.schema`, options of builders in their annotations.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mobilenet_exp.core.errors import InputError


class Range(NamedTuple):
    """A predicate, and what to tell a person whose value does not satisfy it."""

    allows: Callable[[Any], bool]
    problem: str

    def check(self, key: str, value: Any) -> None:
        """Raise InputError if `value` is outside; None is always inside."""
        if value is not None and not self.allows(value):
            raise InputError(key, value, self.problem)


def up_to(most: int, least: int = 1) -> Range:
    """Return a range of whole numbers; beyond `most` a value is taken for a mistake."""
    problem = f"must be a whole number from {least} to {most:,}"
    return Range(lambda v: least <= v <= most, problem)


def one_of(*allowed: str) -> Range:
    """Return the range of exactly these words."""
    return Range(lambda v: v in allowed, f"not known; allowed: {', '.join(allowed)}")


ABOVE_0 = Range(lambda v: 0 < v < math.inf, "must be a number > 0")
FROM_0 = Range(lambda v: 0 <= v < math.inf, "must be a number >= 0")
WHOLE = Range(lambda v: v >= 1, "must be a whole number > 0")
COUNT = Range(lambda v: v >= 0, "must be a whole number >= 0")
# of a whole that must not be reached, as a dropout probability
BELOW_1 = Range(lambda v: 0 <= v < 1, "must be in [0, 1)")
FRACTION = Range(lambda v: 0 <= v <= 1, "must be in [0, 1]")
ABOVE_0_TO_1 = Range(lambda v: 0 < v <= 1, "must be in (0, 1]")
INSIDE_0_1 = Range(lambda v: 0 < v < 1, "must be in (0, 1)")
UP_TO_1000 = Range(lambda v: 0 <= v <= 1000, "must be a number in [0, 1000]")
SIDE = Range(lambda v: 32 <= v <= 8192, "must be a whole number of pixels from 32 to 8192")
# published networks have 0.1 to 1.4
WIDTH = Range(lambda v: 0.01 <= v <= 16, "must be a number from 0.01 to 16")
STRIDE = Range(lambda v: v in (1, 2), "must be 1 or 2")
BITS = Range(lambda v: v in (7, 8), "must be 7 or 8")
SEED = Range(lambda v: 0 <= v < 2**32, "must be a whole number from 0 to 2**32 - 1")
QUALITY = Range(lambda v: 1 <= v <= 100, "must be a whole number from 1 to 100")
NAMED = Range(lambda v: v.strip() != "", "must not be empty")
FOLDER = Range(lambda v: v.strip() != "", "must name a folder")
MEAN = Range(
    lambda v: len(v) == 3 and all(map(math.isfinite, v)),
    "must be three finite numbers, one per colour channel",
)
STD = Range(
    lambda v: len(v) == 3 and all(0 < each < math.inf for each in v), "must be three numbers > 0"
)
NOISE = Range(
    lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1,
    "must be two fractions of the training, as [0.42,0.9]",
)
# YAML's words for truth come capitalised
AUTO_OR_BOOL = Range(
    lambda v: v.lower() in ("auto", "true", "false"), "not known; allowed: auto, true, false"
)
PROJECT = Range(
    lambda v: v.strip() != "" and not set(v) & set("/\\#?%:") and len(v) <= 128,
    "must be 1 to 128 characters without / \\ # ? % :",
)
MODELS = Range(lambda v: len(v) > 0, "must name at least one model")
BATCH_SIZES = Range(
    lambda v: len(v) > 0 and min(v) >= 1 and max(v) <= 1_000_000,
    "must be whole numbers from 1 to 1,000,000",
)
RUNTIMES = Range(
    lambda v: len(v) > 0 and len(set(v)) == len(v), "must name at least one, each once"
)

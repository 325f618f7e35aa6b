"""The errors that a person is meant to read."""

import re


class InputError(ValueError):
    """Bad input, in one line: `key=value: problem`.

    The programs print the message alone and exit with code 2. Anything else that is
    raised, except a RunError, is a defect and keeps its traceback.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key, self.value, self.problem = key, value, problem
        # a flag (-), a deletion (~) or a quoted argument (') is shown without a value
        shown = key if key[:1] in "-~'" else f"{key}={'null' if value is None else value}"
        super().__init__(f"{shown}: {problem}")

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.value, self.problem)


class RunError(RuntimeError):
    """A run that cannot continue, in one line that says what is saved and what to do.

    The programs print the message alone and exit with code 1.
    """


class NonFiniteLossError(RunError):
    """The loss, the gradients or the weights are infinite or not a number."""


class LostPeerError(RunError):
    """Another process of the same job has ended, or cannot be reached."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "multiplication overflow", "overflowed")


def in_plain_words(error: BaseException) -> BaseException:
    """Return a RunError for memory that ran out, and any other error as it is."""
    is_memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    )
    if not is_memory:
        return error
    advice = "choose a smaller batch (data.batch_size, batch_sizes), resolution or network"
    asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
    of = f" for another {asked[1]}" if asked else ""
    return RunError(f"memory does not suffice{of}; {advice}")


def first_line(error: BaseException, most: int = 150) -> str:
    """Return the first line of what a library says, or the error's name if it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:most]

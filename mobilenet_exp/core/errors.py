"""The errors that a person is meant to read. Knows nothing of where they came from."""


class InputError(ValueError):
    """Bad input in one line: `key=value: allowed`.

    Entry scripts print the message alone and exit with code 2; anything else that is
    raised, but for a RunError, is a defect and keeps its traceback.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={'null' if value is None else value}: {allowed}")

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.value, self.allowed)


class RunError(RuntimeError):
    """A run that cannot go on, in one line that says what is saved and what to do.

    Entry scripts print the message alone and exit with code 1.
    """


class NonFiniteLossError(RunError):
    """The loss, the gradients or the weights are no finite numbers any more."""

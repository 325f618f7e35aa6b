"""The errors that a person is meant to read. Knows nothing of where they came from."""


class InputError(ValueError):
    """Bad input, in one line: `key=value: problem`.

    The programs print the message alone and exit with code 2. Anything else that is
    raised, except a RunError, is a defect and keeps its traceback.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key, self.value, self.problem = key, value, problem
        super().__init__(f"{key}={'null' if value is None else value}: {problem}")

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.value, self.problem)


class RunError(RuntimeError):
    """A run that cannot continue, in one line that says what is saved and what to do.

    The programs print the message alone and exit with code 1.
    """


class NonFiniteLossError(RunError):
    """The loss, the gradients or the weights are infinite or not a number."""

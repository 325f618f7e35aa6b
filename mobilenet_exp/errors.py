"""The one error for bad input. Knows nothing of where the input came from."""


class InputError(ValueError):
    """Bad input in one line: `key=value: allowed`.

    Entry scripts print the message alone and exit with code 2; anything else that is
    raised is a defect or a failed run and keeps its traceback.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={'null' if value is None else value}: {allowed}")

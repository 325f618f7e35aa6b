"""Many names in little memory, which processes share without copying."""

import os
from array import array
from collections.abc import Iterable, Iterator

import numpy as np


class Names:
    """Names as one buffer of bytes and where each ends; file names of any bytes are kept.

    A list of as many `str` takes five times the memory, and grows in each loading process
    with every name that is looked at.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return these names."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[first : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def chosen(self, indices: Iterable[int]) -> "Names":
        """Return the names of these numbers."""
        return Names.of(self[index] for index in indices)

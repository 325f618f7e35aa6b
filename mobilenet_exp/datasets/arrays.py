"""Arrays in a file, in safetensors' format, which processes of a machine map and share."""

import json
import os
import uuid
from pathlib import Path

import numpy as np
from safetensors.numpy import save

# safetensors' names of what is kept here
_KINDS = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}


def save_arrays(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Write arrays and texts about them; a reader finds all of them or no file."""
    half = part_of(path)
    plain = {key: np.ascontiguousarray(each) for key, each in arrays.items()}
    # as bytes: a file that safetensors makes is for its owner alone
    try:
        half.write_bytes(save(plain, about))
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return the name of a file until it is whole, which no process on any machine shares."""
    return path.with_name(f"{path.name}.part-{uuid.uuid4().hex[:12]}")


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return arrays that stay on disk until they are looked at, and the texts about them.

    Raises OSError or ValueError for a file that is not there, damaged, or something else.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 0 < length <= size - 8:
            raise ValueError("it is not in safetensors' format")
        head = json.loads(file.read(length))
    about = head.pop("__metadata__", {})
    arrays = {}
    for key, entry in head.items():
        first, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise ValueError("it is cut short")
        kind, shape = _KINDS[entry["dtype"]], tuple(entry["shape"])
        if end == first:
            arrays[key] = np.zeros(shape, kind)
        else:
            arrays[key] = np.memmap(path, kind, "r", offset=8 + length + first, shape=shape)
    return arrays, about

"""Shared by the tests of data."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Two classes of JPEG files, 7 to train on and 5 to evaluate, of uneven sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for index in range(count):
            path = tmp_path / split / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (60 + index, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path

"""Arrays of pixels resized: by torch's kernel for uint8 (fast), or by Pillow (exact).

The two differ by 0 or 1 of 255, by 2 in a few pixels of an enlarged image.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mobilenet_exp.datasets.codec import Box

# resize (1, 3, H, W) to a given size, into a given output
_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
# pixels that such a kernel reaches, of the smaller image's grid
_REACH = {"bilinear": 1, "bicubic": 2}


def as_image(pixels: np.ndarray, *, exact: bool) -> Tensor | Image.Image:
    """Return an array (H, W, 3) as torchvision's transforms want it.

    They use Pillow for Pillow's images, and torch for tensors (3, H, W).
    """
    return Image.fromarray(pixels) if exact else torch.from_numpy(pixels.transpose(2, 0, 1))


def as_pixels(image: Tensor | Image.Image) -> np.ndarray:
    """Return an image, a tensor (3, H, W) or Pillow's, as an array (H, W, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(image)
    return image.numpy().transpose(1, 2, 0)


def resize(pixels: np.ndarray, out: np.ndarray, interpolation: str, *, exact: bool) -> None:
    """Resize an array (H, W, 3) into `out` (h, w, 3), both uint8."""
    if pixels.shape == out.shape:
        out[:] = pixels
    elif exact:
        image, method = as_image(pixels, exact=True), v2.InterpolationMode(interpolation)
        out[:] = as_pixels(F.resize(image, list(out.shape[:2]), method))
    else:
        _kernel(pixels, out, interpolation)


def _kernel(
    pixels: np.ndarray,
    out: np.ndarray,
    interpolation: str,
    scales: tuple[float, float] | tuple[None, None] = (None, None),
) -> None:
    """Resize into `out`; `scales` are those of the whole images where both are parts."""
    image, wanted = (torch.from_numpy(each.transpose(2, 0, 1)[None]) for each in (pixels, out))
    _KERNELS[interpolation](image, list(out.shape[:2]), False, *scales, out=wanted)


class Middle(NamedTuple):
    """An image (height, width) resized to a shorter side, and the `side` pixels in its middle."""

    height: int
    width: int
    resized: tuple[int, int]
    top: int
    left: int
    side: int

    @classmethod
    def of(cls, height: int, width: int, shorter: int, side: int) -> "Middle":
        """Return the middle of an image whose shorter side is resized to `shorter` pixels."""
        least = min(height, width)
        high, wide = int(shorter * height / least), int(shorter * width / least)
        top, left = round((high - side) / 2), round((wide - side) / 2)
        return cls(height, width, (high, wide), top, left, side)

    @property
    def is_cut_only(self) -> bool:
        """Return whether the image has its size already."""
        return self.resized == (self.height, self.width)

    def needed(self, interpolation: str, *, exact: bool) -> Box | None:
        """Return the part of the image that `put` asks for; None: all of it."""
        if exact:
            return None
        if self.is_cut_only:
            return Box(self.top, self.left, self.side, self.side)
        # what lies above and to the left sets the kernel's grid
        reach, ends = _REACH[interpolation], (self.top + self.side, self.left + self.side)
        sizes = zip(ends, self.resized, (self.height, self.width), strict=True)
        return Box(0, 0, *(_reached(*each, reach) for each in sizes))

    def put(self, pixels: np.ndarray, out: np.ndarray, interpolation: str, *, exact: bool) -> None:
        """Write the middle into `out` (side, side, 3), from the needed pixels."""
        if exact:
            whole = as_image(pixels, exact=True)
            whole = F.resize(whole, list(self.resized), v2.InterpolationMode(interpolation))
            out[:] = as_pixels(F.center_crop(whole, [self.side, self.side]))
        elif self.is_cut_only:
            out[:] = pixels
        else:
            shape = (self.top + self.side, self.left + self.side, 3)
            part: np.ndarray = np.empty(shape, np.uint8)
            scales = (self.resized[0] / self.height, self.resized[1] / self.width)
            _kernel(pixels, part, interpolation, scales)
            out[:] = part[self.top :, self.left :]


def _reached(end: int, resized: int, size: int, reach: int) -> int:
    """Return how many pixels of `size` the first `end` of `resized` are made of."""
    scale = size / resized
    return min(size, math.ceil((end - 0.5) * scale + reach * max(scale, 1.0) + 1))

"""How images are prepared for a network."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for evaluation; the defaults are the field's for ImageNet.

    The shorter side is resized to resolution / crop_pct and the centre is cropped; mean
    and std are of pixels in [0, 1].
    """

    resolution: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def describe(self) -> str:
        """Return it in one line."""
        return (
            f"{self.resolution} px, crop_pct {self.crop_pct:g}, {self.interpolation}, "
            f"mean {list(self.mean)}, std {list(self.std)}"
        )

"""What a network is trained to make small. Knows no loop."""

from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn


class SmoothedBinaryCrossEntropy(nn.Module):
    """Each class a question of its own, by timm; the mean over images and classes.

    Source: Wightman et al. 2021, arXiv:2110.00476, section 2.1. timm smooths labels alone;
    here the shares of a mixed batch are smoothed alike.
    """

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.loss = BinaryCrossEntropy(smoothing=label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of `logits` (N, K) for labels (N,) or shares of classes (N, K)."""
        if targets.ndim == 2:
            targets = targets * (1 - self.label_smoothing)
            targets = targets + self.label_smoothing / logits.shape[1]
        return self.loss(logits.float(), targets)


def build_loss(name: str, label_smoothing: float) -> nn.Module:
    """Return `train.loss`: cross_entropy or bce."""
    if name == "bce":
        return SmoothedBinaryCrossEntropy(label_smoothing)
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)

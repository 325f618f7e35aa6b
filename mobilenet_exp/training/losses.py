"""Losses by name: what a network is trained to make small.

A builder gets `train.label_smoothing` and returns a loss of `logits` (N, K) and labels (N,), or
probabilities of classes (N, K) where batches are mixed; a mean over the images.
"""

from torch import Tensor, nn

from mobilenet_exp.core.registry import Registry

LOSSES: Registry = Registry("train.loss")


@LOSSES.register("cross_entropy")
def cross_entropy(label_smoothing: float) -> nn.Module:
    """Cross-entropy of the softmax, by torch."""
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


@LOSSES.register("bce")
class SmoothedBinaryCrossEntropy(nn.Module):
    """Each class a question of its own, by timm; the mean over images and classes.

    Source: Wightman et al. 2021, arXiv:2110.00476, section 2.1. timm smooths labels alone;
    here the probabilities of a mixed batch are smoothed alike.
    """

    def __init__(self, label_smoothing: float) -> None:
        # timm takes more than a second to import
        from timm.loss import BinaryCrossEntropy

        super().__init__()
        self.label_smoothing = label_smoothing
        self.loss = BinaryCrossEntropy(smoothing=label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 2:
            targets = targets * (1 - self.label_smoothing)
            targets = targets + self.label_smoothing / logits.shape[1]
        return self.loss(logits.float(), targets)

"""A trained network to learn from (distillation). Knows no loop."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenet_exp.config.schema import (
    Config,
    DistillConfig,
    EvalConfig,
    EvalModelConfig,
)
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.weights.loaded import load_subject
from mobilenet_exp.weights.published import published_net


class Teacher:
    """A network in eval mode whose answers take a `share` of the loss.

    That part is the Kullback-Leibler divergence of the softened answers times the square
    of the temperature (Hinton et al. 2015, arXiv:1503.02531, section 2). It sees the
    very images that the student sees, normalised as it knows them.
    """

    def __init__(
        self, net: nn.Module, knows: Preprocessing, sees: Preprocessing, config: DistillConfig
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.temperature, self.share = config.temperature, config.share
        # pixels are normalised for the student: undo that, and normalise for the teacher
        std, mean = (torch.tensor(getattr(sees, key)).view(3, 1, 1) for key in ("std", "mean"))
        own_std, own_mean = (
            torch.tensor(getattr(knows, key)).view(3, 1, 1) for key in ("std", "mean")
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def to(self, device: torch.device) -> "Teacher":
        self.net, self.scale, self.shift = (
            each.to(device) for each in (self.net, self.scale, self.shift)
        )
        return self

    def join(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Return the loss with the teacher's part in it; `logits` (N, K), `images` as seen."""
        with torch.no_grad():
            answers = self.net(images * self.scale + self.shift)
        softened = (
            nn.functional.log_softmax(each.float() / self.temperature, 1)
            for each in (logits, answers)
        )
        distance = nn.functional.kl_div(*softened, reduction="batchmean", log_target=True)
        return (1 - self.share) * loss + self.share * self.temperature**2 * distance


def build_teacher(config: Config, classes: list[str], num_classes: int) -> Teacher | None:
    """Load the teacher that a config names, or return None where it names none.

    `timm:ARCH.TAG` is any of timm's nets, as timm builds it. Raises InputError if it
    cannot be loaded or answers with other classes than the student learns.
    """
    distill = config.distill
    if distill.teacher is None:
        return None
    if distill.teacher.startswith("timm:"):
        net, knows = published_net(distill.teacher, key="distill.teacher")
        num_answers = net.num_classes
    else:
        subject = load_subject(_as_subject(distill))
        if subject.classes not in (None, classes):
            allowed = "learned other classes than the data has"
            raise InputError("distill.teacher", distill.teacher, allowed)
        net, knows, num_answers = subject.model, subject.preprocessing, subject.num_classes
    if num_answers != num_classes:
        allowed = f"answers with {num_answers} classes, the network with {num_classes}"
        raise InputError("distill.teacher", distill.teacher, allowed)
    sees = Preprocessing(mean=config.data.mean, std=config.data.std)
    return Teacher(net, knows, sees, distill)


def _as_subject(distill: DistillConfig) -> EvalConfig:
    if distill.model is None:
        if not Path(distill.teacher).is_file():
            allowed = "no such file; torchvision's weights need distill.model, timm's are timm:..."
            raise InputError("distill.teacher", distill.teacher, allowed)
        return EvalConfig(checkpoint=distill.teacher)
    model = EvalModelConfig(name=distill.model, width_mult=distill.width_mult)
    return EvalConfig(weights=distill.teacher, model=model)

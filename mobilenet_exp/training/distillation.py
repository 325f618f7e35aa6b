"""A trained network to learn from (distillation)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenet_exp.config.schema import Config, DistillConfig, ModelConfig, Preprocessing
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.weights.load import load_published, load_run
from mobilenet_exp.weights.pretrained import published_net


class Teacher:
    """A network in eval mode whose answers take a `share` of the loss.

    That part is the Kullback-Leibler divergence of the softened answers times the square
    of the temperature (Hinton et al. 2015, arXiv:1503.02531, section 2). It sees the same
    images as the student, normalised as it was trained.
    """

    def __init__(
        self, net: nn.Module, own: Preprocessing, sees: Preprocessing, config: DistillConfig
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.temperature, self.weight = config.temperature, config.share
        # pixels are normalised for the student: undo that, and normalise for the teacher
        std, mean = (torch.tensor(getattr(sees, key)).view(3, 1, 1) for key in ("std", "mean"))
        own_std, own_mean = (
            torch.tensor(getattr(own, key)).view(3, 1, 1) for key in ("std", "mean")
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
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * distance


def build_teacher(config: Config, classes: list[str], num_classes: int) -> Teacher:
    """Load the teacher that a config names.

    `timm:ARCH.TAG` is any of timm's nets, as timm builds it. Raises InputError if it
    cannot be loaded, or if its classes are not the student's.
    """
    distill = config.distill
    assert distill.teacher is not None
    if distill.teacher.startswith("timm:"):
        net, own = published_net(distill.teacher, key="distill.teacher")
        num_answers = net.num_classes
    else:
        if distill.model is not None:
            model = ModelConfig(name=distill.model, width_mult=distill.width_mult)
            try:
                loaded = load_published(distill.teacher, model)
            except InputError as error:
                problem = error.problem.partition("; choose one, as weights_key")[0]
                raise InputError("distill.teacher", distill.teacher, problem) from error
        elif Path(distill.teacher).is_file():
            loaded = load_run(distill.teacher)
        else:
            problem = (
                "no such file; for torchvision's weights give distill.model, for timm's timm:..."
            )
            raise InputError("distill.teacher", distill.teacher, problem)
        if loaded.classes not in (None, classes):
            problem = "was trained on other classes than the data has"
            raise InputError("distill.teacher", distill.teacher, problem)
        net, own, num_answers = loaded.model, loaded.preprocessing, loaded.num_classes
    if num_answers != num_classes:
        problem = f"answers with {num_answers} classes, the network with {num_classes}"
        raise InputError("distill.teacher", distill.teacher, problem)
    sees = Preprocessing(mean=config.data.mean, std=config.data.std)
    return Teacher(net, own, sees, distill)

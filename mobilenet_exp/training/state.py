"""The state of a training: what learns, by which rules, and how far it is."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import NonFiniteLossError
from mobilenet_exp.core.text import duration
from mobilenet_exp.data.loaders import Loaders
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.machine.distributed import World
from mobilenet_exp.models.fake_quantized import FakeQuantized
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.optim import load_optimizer
from mobilenet_exp.weights.checkpoint import restore_model, restore_ranges

if TYPE_CHECKING:
    from mobilenet_exp.training.distillation import Teacher


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    # epochs completed, updates made in the one after them, seconds spent
    epoch: int = 0
    update: int = 0
    seconds: float = 0.0
    # the best epoch so far and its accuracy in percent; 0: none yet
    best_epoch: int = 0
    top1: float = 0.0
    top5: float = 0.0
    # accuracy after the last epoch that was evaluated, whether or not it was the best
    last_top1: float = 0.0
    # how often the current epoch went back to a checkpoint
    rollbacks: int = 0
    # images that were left out because they could not be read, with the reason
    left_out: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Say where the run stands: `after epoch 2`, or `after epoch 2, update 5`; or nothing."""
        if not self.epoch and not self.update:
            return ""
        return f"after epoch {self.epoch}" + (f", update {self.update}" if self.update else "")

    def complete_epoch(self, scores: dict[str, float] | None) -> bool:
        """Count an epoch, and return whether its scores are the best so far; None: it has none."""
        self.epoch, self.update, self.rollbacks = self.epoch + 1, 0, 0
        if scores is None:
            return False
        self.last_top1 = scores["top1"]
        is_best = self.best_epoch == 0 or scores["top1"] > self.top1
        if is_best:
            self.best_epoch, self.top1, self.top5 = self.epoch, scores["top1"], scores["top5"]
        return is_best


class Scalar:
    """A number on a device: from CUDA it is copied beside the work; elsewhere reading may wait."""

    def __init__(self, value: Tensor, device: torch.device) -> None:
        self._value, self._copied = value.detach().clone(), None
        if device.type == "cuda":
            on_host = torch.empty((), dtype=value.dtype, pin_memory=True)
            on_host.copy_(value, non_blocking=True)
            self._value, self._copied = on_host, torch.cuda.Event()
            self._copied.record()

    @property
    def has_come(self) -> bool:
        return self._copied is None or self._copied.query()

    def item(self) -> float:
        """Return it; waits for it if it has not come."""
        if self._copied:
            self._copied.synchronize()
        return self._value.item()


@dataclass
class TrainMeter:
    """Sums over the updates of an epoch, of this process's images."""

    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    num_images: int = 0
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    # of the updates, and of these spent waiting for images
    seconds: float = 0.0
    waiting: float = 0.0
    # of the epoch's last update
    grad_norm: float | None = None
    # images that could not be read, with the reason, and those left on their side
    left_out: dict[str, str] = field(default_factory=dict)
    num_unturned: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums on the CPU, for other processes and files."""
        return asdict(self) | {"loss_sum": self.loss_sum.cpu(), "correct": self.correct.cpu()}


@dataclass
class Pace:
    """Seconds of the updates made since the epoch was begun or resumed, in this process."""

    updates: int = 0
    seconds: float = 0.0
    # of these, spent waiting for images
    waiting: float = 0.0
    # what comes after an epoch's updates, as last seen: evaluation and saving
    closing: float = 0.0


@dataclass
class TrainState:
    """A training under way.

    `config` is what runs: settings that were left open are filled in.
    """

    config: Config
    compute: Compute
    world: World
    loaders: Loaders
    num_classes: int
    # what learns, and what an update calls: the model itself, or what is around it (step.py)
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    # learning rate of an update, by its number from 0
    lr_at: Callable[[int], float]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    mixing: Mixing | None = None
    teacher: "Teacher | None" = None
    average: Average | None = None
    # the model as it answers in int8, where it learns to
    fake_quantized: FakeQuantized | None = None
    # scales losses whose gradients float16 cannot hold
    scaler: torch.amp.GradScaler | None = None
    # what exchanges gradients between processes, where there are several
    ddp: DistributedDataParallel | None = None
    # whether the passes are recorded as CUDA graphs
    uses_graphs: bool = False
    # what a person should read about the weights it starts from, a line each
    notes: tuple[str, ...] = ()
    # of the whole run; of this epoch, across resumes; of this epoch since it was begun or resumed
    progress: Progress = field(default_factory=Progress)
    meter: TrainMeter = field(default_factory=TrainMeter)
    pace: Pace = field(default_factory=Pace)

    @property
    def step(self) -> int:
        """Return the number of updates made so far."""
        return self.progress.epoch * self.loaders.sampler.num_updates + self.progress.update

    def time_left(self) -> tuple[float, float]:
        """Return the seconds left of the epoch and of the run, at the epoch's pace so far."""
        whole = self.loaders.sampler.num_updates
        update = self.pace.seconds / max(self.pace.updates, 1)
        epoch = (whole - self.progress.update) * update + self.pace.closing
        epochs = self.config.train.epochs - self.progress.epoch - 1
        return epoch, epoch + epochs * (whole * update + self.pace.closing)

    def describe_pace(self) -> str:
        """Say how fast the epoch goes, how long images are waited for, and what is left."""
        seconds = max(self.pace.seconds, 1e-9)
        num_images = self.pace.updates * self.loaders.sampler.batch_size
        epoch, run = self.time_left()
        return (
            f"{num_images / seconds:.0f} images/s, "
            f"{100 * self.pace.waiting / seconds:.0f} % waiting for data, "
            f"{duration(epoch)} left of the epoch, {duration(run)} of the run"
        )

    def not_finite(self, step: int) -> NonFiniteLossError:
        """Return what is raised for a loss that was not finite."""
        where = f"epoch {self.progress.epoch + 1}, step {step}"
        lr = self.lr_at(step)
        return NonFiniteLossError(f"the loss is not finite at {where}, lr {lr:.3g}")

    def to_checkpoint(self, meters: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a checkpoint holds; `meters` are those of all processes."""
        state: dict[str, Any] = {
            "config": asdict(self.config),
            "images": self.loaders.identity(),
            "classes": self.loaders.classes,
            "num_classes": self.num_classes,
            "epoch": self.progress.epoch,
            "progress": asdict(self.progress),
            "meters": meters,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if variant := getattr(self.model, "variant", None):
            state["dialect"] = asdict(variant)
        if self.average:
            state["model_ema"] = self.average.state_dict()
        if self.fake_quantized:
            state["rounding"] = self.fake_quantized.ranges.state_dict()
        if self.compute.device.type == "cpu":
            state["threads"] = torch.get_num_threads()
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_weights(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take a checkpoint's weights and what follows them, but not how far it was."""
        restore_model(self.model, checkpoint, path)
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        if self.scaler and "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])
        if self.average:
            averaged = checkpoint | {"model": checkpoint["model_ema"]}
            restore_model(self.average.model, averaged, path)
        if self.fake_quantized:
            restore_ranges(self.fake_quantized, checkpoint, path)

    def load_meter(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's sums; if the number of processes changed, the first takes all."""
        # "tallies" in checkpoints from before 0.2
        meters, world = checkpoint.get("meters") or checkpoint["tallies"], self.world
        if len(meters) == world.size:
            self.meter = TrainMeter(**meters[world.rank])
            return
        # every process counts the same updates and seconds
        alike = {key: meters[0][key] for key in ("num_skipped", "skipped_in_a_row", "seconds")}
        if not world.is_main:
            self.meter = TrainMeter(**alike)
            return
        added = ("loss_sum", "correct", "num_images", "num_unturned")
        sums = {key: sum(each.get(key, 0) for each in meters) for key in added}
        left_out = {key: why for each in meters for key, why in each.get("left_out", {}).items()}
        self.meter = TrainMeter(**sums | alike, left_out=left_out)

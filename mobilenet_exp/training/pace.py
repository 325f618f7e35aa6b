"""How fast a run goes and how long it has left. Knows no network and prints nothing."""

from dataclasses import dataclass

from mobilenet_exp.core.text import duration


@dataclass
class Pace:
    """Seconds of the updates made since the epoch was begun or resumed, in this process."""

    updates: int = 0
    seconds: float = 0.0
    # of these, spent waiting for images
    waiting: float = 0.0
    num_images: int = 0
    # what comes after an epoch's updates, as last seen: evaluation and saving
    closing: float = 0.0

    def begin_epoch(self) -> None:
        self.updates, self.seconds, self.waiting, self.num_images = 0, 0.0, 0.0, 0

    def add(self, seconds: float, num_images: int) -> None:
        """Count an update."""
        self.updates += 1
        self.seconds += seconds
        self.num_images += num_images

    def left(self, updates: int, epochs: int, updates_of_epoch: int) -> tuple[float, float]:
        """Return the seconds left of the epoch and of the run.

        `updates` are left in the epoch, `epochs` after it, each of `updates_of_epoch`.
        """
        each = self.seconds / max(self.updates, 1)
        of_epoch = updates * each + self.closing
        return of_epoch, of_epoch + epochs * (updates_of_epoch * each + self.closing)

    def words(self, updates: int, epochs: int, updates_of_epoch: int) -> str:
        """Say the speed, the share of the time that images were waited for, and what is left."""
        seconds = max(self.seconds, 1e-9)
        of_epoch, of_run = self.left(updates, epochs, updates_of_epoch)
        return (
            f"{self.num_images / seconds:.0f} images/s, "
            f"{100 * self.waiting / seconds:.0f} % waiting for data, "
            f"{duration(of_epoch)} left of the epoch, {duration(of_run)} of the run"
        )

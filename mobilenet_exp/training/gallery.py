"""What a run shows beside its figures: curves, answers, worst images, the first batch, costs.

All of it lies in the run's folder as pictures and tables; W&B shows the same.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.utils import make_grid, save_image

from mobilenet_exp.config.identity import run_title
from mobilenet_exp.core import console
from mobilenet_exp.core.text import as_csv
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.results import answer_files, class_titles
from mobilenet_exp.evaluation.showing import show_answers
from mobilenet_exp.models.profiling import (
    BlockCost,
    LayerCost,
    Profile,
    profile_blocks,
    profile_layers,
)
from mobilenet_exp.papers.comparison import Comparison, Unpublished
from mobilenet_exp.tracking.pictures import Sparing, draw_curves
from mobilenet_exp.tracking.tracker import Tracker
from mobilenet_exp.training.session import Session

# the folder, in the run's, of what the best epoch answered
BEST = "best"
CURVES, FIRST_BATCH = "curves.png", "first_batch.png"
# images of the first batch that are shown, in rows of ROW, of at most SIDE pixels
SHOWN, ROW, SIDE = 32, 8, 160
# standard deviations of the network's input that are shown as black and as white
REACH = 2.5


class Gallery:
    """The pictures and tables of the run that a session trains."""

    def __init__(
        self, session: Session, tracker: Tracker, comparison: Comparison | Unpublished
    ) -> None:
        self.session, self.tracker, self.comparison = session, tracker, comparison
        self._draws = session.config.run.pictures
        self._curves = Sparing(self._draw_curves)

    def looking(self, batches: Iterable) -> Iterator:
        """Pass training batches on, and draw the first one of the run."""
        progress = self.session.progress
        wanted = self._draws and not (progress.epoch or progress.update)
        for batch in batches:
            if wanted:
                # now: the reader uses its memory again
                self._draw_first(batch[0][:SHOWN].float().cpu())
                wanted = False
            yield batch

    def _draw_first(self, images: Tensor) -> None:
        with console.sparing(FIRST_BATCH):
            path = self.tracker.draw(FIRST_BATCH, lambda path: _draw_batch(images, path))
            self.tracker.picture("train/first_batch", path)

    def open(self) -> None:
        """Write what each block and each layer of the network costs."""
        model, side = self.session.model, self.session.config.data.resolution
        with console.sparing("blocks.csv, layers.csv"):
            for name, kind, costs in (
                ("blocks", BlockCost, profile_blocks(model, side)),
                ("layers", LayerCost, profile_layers(model, side)),
            ):
                columns, rows = list(kind._fields), [list(each) for each in costs]
                self.tracker.write(f"{name}.csv", as_csv([columns, *rows]))
                self.tracker.table(f"model/{name}", columns, rows)

    def epoch(self, best: Predictions | None) -> None:
        """Write the answers of the best epoch so far, and draw the curves if it is time."""
        if best is not None:
            with console.sparing(f"{BEST}/"):
                for name, text in answer_files(self._images, best, self._titles()).items():
                    self.tracker.write(f"{BEST}/{name}", text)
        if self._draws:
            self._curves.do()

    def _draw_curves(self) -> None:
        row = self.comparison.paper if isinstance(self.comparison, Comparison) else None
        paper = (f"{row.source}, {row.top1:g} %", row.top1) if row and row.top1 else None
        rows, title = self.tracker.rows(), run_title(self.session.config)
        with console.sparing(CURVES):
            self.tracker.draw(CURVES, lambda path: draw_curves(rows, path, title, paper))

    @property
    def _images(self) -> Dataset:
        return self.session.loaders.val_images

    def _titles(self) -> list[str]:
        session = self.session
        is_imagenet = session.config.data.is_imagenet
        return class_titles(session.loaders.classes, session.num_classes, is_imagenet=is_imagenet)

    def close(self, profile: Profile) -> None:
        """Draw what is drawn once, at the end, and show in W&B what the best epoch answered."""
        tracker, progress = self.tracker, self.session.progress
        if self._draws:
            self._curves.do_now()
        show_answers(tracker, BEST, "val", self._images, draws=self._draws)
        columns, rows = self.comparison.table(profile, progress.top1, progress.top5)
        tracker.table("paper/table", columns, rows)
        if self.session.config.run.wandb_artifacts:
            for alias in ("best", "last"):
                tracker.artifact(tracker.folder / "checkpoints" / f"{alias}.pt", alias)


def _draw_batch(images: Tensor, path: Path) -> None:
    """Draw images as the network gets them: its zero is grey."""
    shown = 0.5 + images / (2 * REACH)
    if shown.shape[-1] > SIDE:
        shown = nn.functional.interpolate(shown, size=SIDE, mode="area")
    else:
        # small ones by whole pixels
        shown = nn.functional.interpolate(shown, scale_factor=float(SIDE // shown.shape[-1]))
    save_image(make_grid(shown, nrow=ROW, pad_value=1.0), path, format="png")

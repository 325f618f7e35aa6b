"""Batches of images for training and evaluation, by torch's DataLoader.

Order and augmentation of an epoch depend on (seed, epoch) alone, whatever the number of
workers, so a resumed run needs no generator state.
"""

import hashlib
import itertools
import math
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenet_exp.config.schema import Config, DataConfig, EvalImages
from mobilenet_exp.core.errors import InputError, RunError, first_line
from mobilenet_exp.data.augment import (
    Erasure,
    EvalTransform,
    Normaliser,
    TrainTransform,
    side_of_epoch,
)
from mobilenet_exp.data.sampler import BatchSampler, EvalSampler, Key
from mobilenet_exp.datasets import codec
from mobilenet_exp.datasets.images import ImageFiles, name_of, open_item
from mobilenet_exp.datasets.sets import ImageSet, build_image_set
from mobilenet_exp.machine.preemption import STOP_SIGNALS

CPU = torch.device("cpu")
# characters of the reason why an image cannot be read
LONGEST = 1000
# images tried in the place of one that cannot be read
MAX_TRIES = 100
# workers beside a network that computes on the same cores
MOST_BESIDE_CPU = 4
# batches of a worker that are there at once: DataLoader asks each for two ahead, and one is
# being normalised
PARTS = 3
# a wait so many seconds longer than its limit means that the process was paused
PAUSE = 2.0
# what torch says when a worker died or could not hand over its batch
WORKER_DIED = (
    "unable to write to file",
    "unable to allocate shared memory",
    "No space left on device",
    "is killed by signal",
    "exited unexpectedly",
    "Too many open files",
)
TIMED_OUT = "DataLoader timed out"
WORKER_ADVICE = (
    "memory or /dev/shm may be full: make it larger (docker run --shm-size=8g), or load fewer "
    "images at once with run.workers=0 or a lower run.workers"
)
BAD_IMAGE_ADVICE = (
    "to resume, repair the file, or repeat the command with data.on_bad_image=skip; "
    "without the file it is another set of images, which needs another run.root"
)


@dataclass
class Batch:
    """Images as a worker hands them over: pixels (N, side, side, 3) uint8, before normalisation.

    A label of -1 means that the image cannot be scored; its note says why. Other notes say
    what was converted. `left_out` maps images that could not be read, and that others took
    the place of, to the reason; `num_unturned` counts those whose EXIF orientation was
    ignored; `erasures` are done after normalisation; `problem` ends a run.
    """

    pixels: Tensor
    labels: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    num_unturned: int = 0
    erasures: dict[int, Erasure] = field(default_factory=dict)
    problem: str = ""
    # the worker and its part of SharedPixels that `pixels` lie in, if they do
    lies_in: tuple[int, int] | None = None

    @classmethod
    def empty(cls, count: int, side: int) -> "Batch":
        """Return a batch of so many images, in shared memory if this is a worker that has some."""
        shape = (count, side, side, 3)
        if _worker is None or _worker.shared is None:
            return cls(torch.empty(shape, dtype=torch.uint8))
        part = _worker.num_batches % PARTS
        _worker.num_batches += 1
        pixels = _worker.shared.pixels(_worker.number, part, shape)
        return cls(pixels, lies_in=(_worker.number, part))

    def __getstate__(self) -> dict[str, Any]:
        # what lies in shared memory stays there
        return self.__dict__ | ({"pixels": self.pixels.shape} if self.lies_in else {})

    def pin_memory(self) -> "Batch":
        self.pixels = self.pixels.pin_memory()
        return self


class TrainSet(Dataset):
    """A training set whose random transforms follow a seed that comes with the index.

    Where `data.on_bad_image` is skip, the next image that can be read takes the place of
    one that cannot: the same in every process, and no batch gets smaller.
    """

    def __init__(self, images: Dataset, data: DataConfig) -> None:
        self.images, self.data = images, data
        self.tries = min(MAX_TRIES, len(images)) if data.on_bad_image == "skip" else 1
        # the largest; a progressive side rises to it
        self.side = side_of_epoch(data, 1, 1)
        # by side; a bad description is refused here
        self.transforms = {self.side: TrainTransform(data, self.side)}

    def __getitem__(self, keys: list[Key]) -> Batch:
        side = keys[0].side
        if side not in self.transforms:
            self.transforms[side] = TrainTransform(self.data, side)
        batch = Batch.empty(len(keys), side)
        # the augmentation seeds the global generators for each image
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        try:
            for key, out in zip(keys, batch.pixels.numpy(), strict=True):
                self._read(key, out, batch)
                if batch.problem:
                    break
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])
        _note_reading(-1)
        return batch

    def _read(self, key: Key, out: np.ndarray, batch: Batch) -> None:
        """Write an image, or the next one that can be read, into `out`."""
        tried = {}
        for number in range(key.image, key.image + self.tries):
            index = number % len(self.images)
            _note_reading(index)
            try:
                image, label = open_item(self.images, index)
                erasure = self.transforms[key.side](image, key.seed, out)
            except OSError as error:
                tried[name_of(self.images, index)] = first_line(error, LONGEST)
                continue
            if erasure:
                batch.erasures[len(batch.labels)] = erasure
            batch.left_out |= tried
            batch.num_unturned += image.is_sideways
            batch.labels.append(label)
            return
        name, reason = next(iter(tried.items()))
        if len(tried) > 1:
            batch.problem = f"{len(tried)} images in a row cannot be read; the first: {name} "
            batch.problem += reason
        elif isinstance(self.images, ImageFiles):
            batch.problem = f"{self.images.root}/{name} {reason}; {BAD_IMAGE_ADVICE}"
        else:
            batch.problem = f"{reason}; {BAD_IMAGE_ADVICE}"


class EvalSet(Dataset):
    """Images for evaluation, by number; one that cannot be read has the label -1 and a note."""

    def __init__(self, images: Dataset, data: EvalImages | DataConfig) -> None:
        self.images, self.side = images, data.resolution
        self.transform = EvalTransform(data, exact=data.resize == "exact")

    def __getitem__(self, indices: list[int]) -> Batch:
        batch = Batch.empty(len(indices), self.side)
        for index, out in zip(indices, batch.pixels.numpy(), strict=True):
            _note_reading(index)
            try:
                image, label = open_item(self.images, index)
                self.transform(image, out)
                note = image.note
            except OSError as error:
                out[:] = 0
                label, note = -1, first_line(error, LONGEST)
            batch.labels.append(label)
            batch.notes.append(note)
        _note_reading(-1)
        return batch


class ReaderSlots(NamedTuple):
    """The number of the image that each worker reads, -1 for none, and since when.

    In memory that they share with the training process, so that it can name the image that a
    worker dies of, or hangs at. Times are of the machine's monotonic clock.
    """

    images: Any
    since: Any

    def slowest(self) -> tuple[int, float]:
        """Return the image that has been read longest, or -1, and for how many seconds."""
        reading = [(since, image) for image, since in zip(*self, strict=True) if image >= 0]
        since, image = min(reading, default=(time.monotonic(), -1))
        return image, time.monotonic() - since


class SharedPixels(NamedTuple):
    """Memory that workers write batches into, and that the training process reads them from.

    Each worker has PARTS of it, used in turns, of `size` bytes each. Without it a batch is
    copied into new shared memory, which both have to map page by page.
    """

    memory: list[Any]
    size: int

    def pixels(self, worker: int, part: int, shape: Sequence[int]) -> Tensor:
        memory, count = self.memory[worker], math.prod(shape)
        whole = torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=part * self.size)
        return whole.view(shape)


@dataclass
class Worker:
    """What a worker is given: its number, and memory that it shares with its owner."""

    number: int
    slots: ReaderSlots
    shared: SharedPixels | None
    num_batches: int = 0


# of a worker
_worker: Worker | None = None


def _note_reading(index: int) -> None:
    """Note in a worker which image it reads from now on; -1: none."""
    if _worker:
        _worker.slots.since[_worker.number] = time.monotonic()
        _worker.slots.images[_worker.number] = index


def _begin_worker(slots: ReaderSlots, shared: SharedPixels | None, number: int) -> None:
    """Let the training process alone decide what Ctrl-C and a scheduler's signals mean."""
    global _worker
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _worker = Worker(number, slots, shared)


class Batches(Protocol):
    """Lists of keys, `part_size` at most, and where in a run the next pass over them begins."""

    @property
    def position(self) -> object: ...

    @property
    def part_size(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list]: ...


class Loader:
    """Batches of images (N, 3, H, W) float32 on a device, labels (N,) int64, and the `Batch`.

    `batches` are lists of keys; each pass reads what they are when it begins. Raises a
    RunError in plain words for an image that cannot be read, and for a worker that died or
    takes longer than `timeout` seconds for an image.
    """

    def __init__(
        self,
        images: TrainSet | EvalSet,
        batches: Batches,
        normaliser: Normaliser,
        *,
        workers: int,
        timeout: float | None,
    ) -> None:
        Finalize(None, _kill_workers, exitpriority=100)
        self.images, self.batches, self.normaliser = images, batches, normaliser
        self.workers, self._timeout = workers, timeout or 0
        shared = multiprocessing.RawArray
        self._slots = ReaderSlots(shared("q", [-1] * workers), shared("d", workers))
        # a GPU's batches are copied into memory that is pinned for it anyway
        self._shared: SharedPixels | None = None
        if workers and normaliser.device.type == "cpu":
            size = 3 * batches.part_size * images.side**2
            self._shared = SharedPixels([shared("B", PARTS * size) for _ in range(workers)], size)
        # no reference to this object: when it is not needed any more, its workers end at once
        self._keys = _Keys()
        self._passes = 0
        # a pass that was begun early, and where
        self._begun: tuple[object, Iterator[Batch]] | None = None
        self._loader: DataLoader = DataLoader(
            images,
            # it yields the keys of whole batches
            sampler=self._keys,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=partial(_begin_worker, self._slots, self._shared),
            persistent_workers=workers > 0,
            pin_memory=normaliser.device.type == "cuda",
            timeout=self._timeout if workers else 0,
            # its own: a loader would draw from the global generator, which dropout follows
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def start_workers(self) -> None:
        """Start the workers, which stay until the end, on nothing.

        Best before this process holds memory: what it changes later is copied for each.
        """
        self._start([])

    def begin(self) -> None:
        """Let workers read the first batches of the next pass now, while other things are done."""
        if self._begun is None or self._begun[0] != self.batches.position:
            self._begun = self.batches.position, self._start(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        begun, self._begun = self._begun, None
        if begun and begun[0] == self.batches.position:
            loaded = begun[1]
        else:
            loaded = self._start(self.batches)
        return self._on_device(self._read(loaded, self._passes))

    def first(self, count: int) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Yield the first batches only, and read no more than these."""
        loaded = self._start(itertools.islice(iter(self.batches), count))
        return self._on_device(self._read(loaded, self._passes))

    def _start(self, batches: Iterable[list]) -> Iterator[Batch]:
        """Let workers begin to read, and return what they read; a pass before this one is over."""
        self._keys.batches = batches
        self._passes += 1
        try:
            if self.workers and self._passes == 1:
                # what torch is about to make; where /dev/shm has no room for it, torch would
                # say so a second time, when it deletes what it has made
                queues: list[Any] = [multiprocessing.Queue() for _ in range(self.workers + 3)]
                for queue in queues:
                    queue.close()
            loaded = iter(self._loader)
        except (RuntimeError, OSError) as error:
            if refusal := self._refusal(error):
                raise refusal from error
            raise
        if self.workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever this process is; a dead worker is noticed later
            _forget_children()
        return loaded

    def _read(self, loaded: Iterator[Batch], number: int) -> Iterator[Batch]:
        """Yield what was read in pass `number`; a batch may take longer than one image may."""
        while True:
            if number != self._passes:
                raise RuntimeError("another pass over the images was begun")
            started = time.monotonic()
            try:
                batch = next(loaded)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                image, seconds = self._slots.slowest()
                is_at_work = image >= 0 and seconds < self._timeout
                # as by Ctrl-Z: its own time was up at once
                was_paused = time.monotonic() - started > self._timeout + PAUSE
                if TIMED_OUT in str(error) and (is_at_work or was_paused):
                    continue
                if refusal := self._refusal(error):
                    raise refusal from error
                raise
            if batch.problem:
                raise RunError(batch.problem)
            if batch.lies_in and self._shared:
                batch.pixels = self._shared.pixels(*batch.lies_in, batch.pixels)
            yield batch

    def _refusal(self, error: Exception) -> RunError | None:
        """Say in plain words that a worker died or does not answer; None for another error."""
        if TIMED_OUT in str(error):
            return RunError(self._who_hangs())
        if any(sign in str(error) for sign in WORKER_DIED):
            return RunError(f"{self._who_died()}; {WORKER_ADVICE}")
        return None

    def _who_hangs(self) -> str:
        image, seconds = self._slots.slowest()
        if image < 0:
            return "a loading process does not answer; run.workers=0 needs none"
        problem = f"{name_of(self.images.images, image)} has been read for {seconds:.0f} s"
        advice = "repair or remove the file, or allow more time with run.image_timeout"
        return f"{problem} and is not done; {advice}"

    def _who_died(self) -> str:
        processes = getattr(self._loader._iterator, "_workers", [])
        dead = [i for i, each in enumerate(processes) if each.exitcode not in (None, 0)]
        at = [self._slots.images[i] for i in dead if self._slots.images[i] >= 0]
        problem = "a loading process died or could not hand over its batch"
        return f"{problem}, at {name_of(self.images.images, at[0])}" if at else problem

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        if self.normaliser.device.type != "cuda":
            yield from map(self._normalised, batches)
            return
        # copy and normalise a batch beside the network's work on the one before it
        stream, current = self.normaliser.stream, torch.cuda.current_stream(self.normaliser.device)
        waiting: tuple[tuple[Tensor, Tensor, Batch], Any] | None = None
        for batch in itertools.chain(batches, [None]):
            following = None
            if batch:
                with torch.cuda.stream(stream):
                    following = self._normalised(batch), stream.record_event()
            if waiting:
                tensors, copied = waiting
                current.wait_event(copied)
                tensors[0].record_stream(current)
                yield tensors
            waiting = following

    def _normalised(self, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        # normal tensors, also where the loop is in inference mode
        with torch.inference_mode(False):
            images = self.normaliser(batch.pixels, batch.erasures)
            return images, torch.tensor(batch.labels), batch


class _Keys:
    """The keys of the pass under way, as the DataLoader's sampler."""

    batches: Iterable[list] = ()

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches)


def _kill_workers() -> None:
    """End the workers with this process, however it ends in Python.

    They ignore SIGTERM, by which multiprocessing would end them before it waits for them.
    """
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises for a worker that was killed
        _forget_children()
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _forget_children() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@dataclass(frozen=True)
class LoaderOptions:
    """Where images go and who reads them; `workers` is explained in `num_workers`.

    `image_timeout` is in seconds; None: no limit. `ranks_on_machine` processes train
    together on the same cores.
    """

    device: torch.device = CPU
    workers: int | None = None
    image_timeout: float | None = None
    ranks_on_machine: int = 1


def num_workers(images: ImageSet, options: LoaderOptions) -> int:
    """Return the loading processes of one process that trains or evaluates.

    `options.workers` if given. Else, beside a GPU, the cores of each rank; on a CPU none
    for data in memory, or half of the cores, where the network computes, too.
    """
    if options.workers is not None:
        return options.workers
    # those this process may use, where the system tells: a cluster's job has some of them
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    if (given := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal() and int(given):
        cores = min(cores, int(given))
    cores //= options.ranks_on_machine
    if options.device.type != "cpu":
        return max(1, cores)
    if images.in_memory:
        return 0
    # with all cores reading, the network's threads wait for each other: on 2 cores training
    # ran at 66 images/s beside one reader, at 54 beside two
    return max(1, min(MOST_BESIDE_CPU, cores // 2))


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run, and what is known of its images.

    Call `sampler.set_position` before an epoch. Images that do not fill a last training batch
    are left out; evaluation sees every image once, this process those of number `rank`,
    `rank` + `processes`, ... `others` are files that are no images, with the reason.
    """

    train: Loader
    sampler: BatchSampler
    val: Loader
    train_images: Dataset
    val_images: Dataset
    classes: list[str]
    others: dict[str, str]

    def identity(self) -> dict[str, object]:
        """Return what tells one set of images from another: classes, counts, names of files."""
        return _identity(self.classes, self.train_images, self.val_images)

    def fingerprint(self) -> str:
        """Return a hash of all images' names and labels, which peers that train together share."""
        return _fingerprint(self.classes, self.train_images, self.val_images)


def image_identity(config: Config) -> dict[str, object]:
    """Return the `identity` of a run's images without loaders for them."""
    train, val = build_image_set(config.data, "train"), build_image_set(config.data, "val")
    return _identity(_check_classes(config.data, train, val), train.images, val.images)


def _identity(classes: list[str], train: Dataset, val: Dataset) -> dict[str, object]:
    identity: dict[str, object] = {
        "classes_sha256": hashlib.sha256("\n".join(classes).encode()).hexdigest(),
        "num_train": len(train),
        "num_val": len(val),
    }
    if isinstance(val, ImageFiles):
        identity["names_sha256"] = _fingerprint(classes, train, val)
    return identity


def _fingerprint(classes: list[str], *splits: Dataset) -> str:
    digest = hashlib.sha256("\n".join(classes).encode())
    for images in splits:
        if isinstance(images, ImageFiles):
            images.add_to(digest)
    return digest.hexdigest()


def build_loaders(
    data: DataConfig,
    *,
    seed: int,
    epochs: int = 1,
    accumulate: int = 1,
    rank: int = 0,
    processes: int = 1,
    options: LoaderOptions | None = None,
) -> Loaders:
    """Build the training and evaluation loaders of a data set by `data.name`.

    Of `processes` that train together this is number `rank`; `epochs` is how long a
    progressive side takes to rise. Raises InputError for an unknown name or option and for
    missing files.
    """
    options = options or LoaderOptions()
    train, val = build_image_set(data, "train"), build_image_set(data, "val")
    if not train.in_memory:
        # before workers and threads ask for it
        codec.library()
    classes = _check_classes(data, train, val)
    sampler = BatchSampler(
        len(train.images),
        data.batch_size,
        seed=seed,
        side_at=partial(side_of_epoch, data, epochs=epochs),
        repeats=data.repeats,
        rank=rank,
        processes=processes,
        accumulate=accumulate,
        pairs=data.mixes,
    )
    last = data.train_resolution or data.resolution
    if data.progressive_from and data.progressive_from > last:
        problem = f"must not exceed training's side, {last}"
        raise InputError("data.progressive_from", data.progressive_from, problem)
    if sampler.part_size < 2:
        problem = "each accumulation part needs at least 2 images for BatchNorm"
        raise InputError("data.batch_size", data.batch_size, problem)
    # an update's batch is divided among all processes; so is an evaluation's
    eval_sampler = EvalSampler(
        range(rank, len(val.images), processes), max(1, data.batch_size // processes)
    )
    workers, timeout = num_workers(train, options), options.image_timeout
    # an evaluation takes a quarter of the time, beside the next epoch's first images
    eval_workers = min(workers, max(1, workers // 4))
    train_set, eval_set = TrainSet(train.images, data), EvalSet(val.images, data)
    normaliser = Normaliser(data.mean, data.std, options.device)
    others: dict[str, str] = {}
    for images in (train.images, val.images):
        if isinstance(images, ImageFiles):
            # one tree that was split has them once
            folder = "" if train.images.root == val.images.root else f"{images.root.name}/"
            others |= {f"{folder}{name}": why for name, why in images.others.items()}
    return Loaders(
        train=Loader(train_set, sampler, normaliser, workers=workers, timeout=timeout),
        sampler=sampler,
        val=Loader(eval_set, eval_sampler, normaliser, workers=eval_workers, timeout=timeout),
        train_images=train.images,
        val_images=val.images,
        classes=classes,
        others=others,
    )


def build_eval_loader(
    data: EvalImages,
    *,
    first: int = 0,
    step: int = 1,
    most: int | None = None,
    split: str = "val",
    options: LoaderOptions | None = None,
) -> tuple[Loader, ImageSet]:
    """Build the loader of an evaluation, and the whole set of `split`; needs no other images.

    It takes the images number `first`, `first + step`, ... of the set, or `most` of these
    from all over it.
    """
    options = options or LoaderOptions()
    codec.library()
    images = build_image_set(data, split)
    numbers: Sequence[int] = range(first, len(images.images), step)
    if most is not None and most < len(numbers):
        numbers = [numbers[index * len(numbers) // most] for index in range(most)]
    loader = Loader(
        EvalSet(images.images, data),
        EvalSampler(numbers, data.batch_size),
        Normaliser(data.mean, data.std, options.device),
        workers=num_workers(images, options),
        timeout=options.image_timeout,
    )
    return loader, images


def _check_classes(data: DataConfig, train: ImageSet, val: ImageSet) -> list[str]:
    """Return the class names of both splits. Raises InputError where they are not the same."""
    longer = max(train.classes, val.classes, key=len)
    shorter = min(train.classes, val.classes, key=len)
    # labels of shards from elsewhere are numbers, of which a split may lack the last
    if data.name == "packed" and longer[: len(shorter)] == shorter:
        return longer
    if train.classes != val.classes:
        unshared = sorted(set(train.classes) ^ set(val.classes))
        problem = "train/ and val/ must hold the same classes; only one of them has"
        raise InputError("data.root", data.root, f"{problem} {', '.join(unshared[:5])}")
    return longer

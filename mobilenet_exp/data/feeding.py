"""Batches of images, read by threads, or by processes, one or more ahead of who takes them.

Threads share one pool and write straight into a batch; decoding and resizing leave Python's
lock. Loading processes are for what draws from global generators or is not made for
threads. Both give the same batches. Knows no data set.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.core.text import plural
from mobilenet_exp.data.finishing import Finisher
from mobilenet_exp.data.threads import Threads
from mobilenet_exp.data.views import Seen, View

# images that a thread reads before it looks for other work
CHUNK = 8
# batches that are read before they are asked for
AHEAD = 2

_own = threading.local()


class Batches(Protocol):
    """Lists of keys, and where in a run the next pass over them begins."""

    @property
    def position(self) -> object: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list]: ...


class Raw:
    """A batch under way, and what is known of each of its images.

    `memory` (N, side, side, 3) holds pixels in uint8, or, where `finisher` works on this
    machine's memory, the network's inputs.
    """

    def __init__(
        self, view: View, keys: list, memory: Tensor, finisher: Finisher | None = None
    ) -> None:
        self.view, self.keys, self.memory, self.finisher = view, keys, memory, finisher
        self.seen: list[Seen] = [Seen(-1)] * len(keys)
        self.error: BaseException | None = None
        self.is_dropped = False
        self.done = threading.Event()
        self._left = -(-len(keys) // CHUNK)
        self._lock = threading.Lock()

    def tasks(self) -> Iterator[Callable[[], None]]:
        """Return what has to be done, in parts."""
        for first in range(0, len(self.keys), CHUNK):
            yield partial(self._do, slice(first, min(first + CHUNK, len(self.keys))))

    def _do(self, part: slice) -> None:
        try:
            self._read(part)
        except BaseException as error:
            self.error = error
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()

    @torch.inference_mode(False)
    def _read(self, part: slice) -> None:
        memory = self.memory[part]
        pixels = _scratch(memory.shape) if self.finisher else memory
        outs = pixels.numpy()
        for number, out in zip(range(part.start, part.stop), outs, strict=True):
            if self.is_dropped or self.error:
                return
            self.seen[number] = self.view.read(self.keys[number], out)
        if self.finisher:
            self.finisher(pixels, [each.late for each in self.seen[part]], memory)

    def check(self) -> None:
        """Raise what went wrong; RunError for an image that cannot be read."""
        if self.error:
            raise self.error
        for each in self.seen:
            if each.problem:
                raise RunError(each.problem)

    @torch.inference_mode(False)
    def inputs(self, finisher: Finisher) -> Tensor:
        """Return images (N, 3, H, W) float32."""
        if self.finisher:
            return self.memory.permute(0, 3, 1, 2)
        return finisher(self.memory, [each.late for each in self.seen])


def _scratch(shape: torch.Size) -> Tensor:
    """Return this thread's memory for the pixels of a few images."""
    if getattr(_own, "pixels", None) is None or _own.pixels.numel() < shape.numel():
        _own.pixels = torch.empty(shape.numel(), dtype=torch.uint8)
    return _own.pixels[: shape.numel()].view(shape)


class ThreadReader:
    """Raw batches of a view, in order, read by threads ahead of who takes them.

    On a CPU the threads make the network's inputs, too. `keep` is how many batches are
    looked at together, whose memory is used again when more are asked for; 0: each batch
    has its own.
    """

    def __init__(
        self, view: View, threads: Threads, priority: int, finisher: Finisher, *, keep: int
    ) -> None:
        self.view, self.threads, self.priority, self.keep = view, threads, priority, keep
        self.pins = finisher.device.type == "cuda"
        self.finisher = finisher if finisher.device.type == "cpu" else None
        self._free: list[Tensor] = []

    @property
    def workers(self) -> int:
        return self.threads.count

    @property
    def words(self) -> str:
        """Say who reads, or nothing where it is the process itself."""
        return plural(self.threads.count, "loading thread") if self.threads.count else ""

    def __call__(self, batches: Iterable[list]) -> Iterator[Raw]:
        """Begin to read, and return the raw batches."""
        under_way: deque[Raw] = deque()
        keys = iter(batches)
        if self.threads.count:
            self._fill(under_way, keys)
        return self._taken(under_way, keys)

    def _taken(self, under_way: deque[Raw], keys: Iterator[list]) -> Iterator[Raw]:
        handed: deque[Tensor] = deque()
        try:
            while True:
                self._fill(under_way, keys)
                if not under_way:
                    return
                self.threads.wait(under_way[0].done, self.view)
                raw = under_way.popleft()
                raw.check()
                yield raw
                if not self.finisher:
                    # it was copied to where it is finished
                    self._free.append(raw.memory)
                elif self.keep:
                    handed.append(raw.memory)
                    if len(handed) == self.keep:
                        self._free.append(handed.popleft())
        finally:
            for raw in under_way:
                raw.is_dropped = True

    def _fill(self, under_way: deque[Raw], keys: Iterator[list]) -> None:
        while len(under_way) < (AHEAD if self.threads.count else 1):
            batch = next(keys, None)
            if batch is None:
                return
            side = self.view.side(batch[0])
            memory = self._memory(torch.Size((len(batch), side, side, 3)))
            raw = Raw(self.view, batch, memory, self.finisher)
            under_way.append(raw)
            for task in raw.tasks():
                self.threads.submit(task, self.priority)

    @torch.inference_mode(False)
    def _memory(self, shape: torch.Size) -> Tensor:
        # whoever takes the batches may only infer; the threads write to it all the same
        kind = torch.float32 if self.finisher else torch.uint8
        while self._free:
            found = self._free.pop()
            whole = found.untyped_storage().nbytes() // found.element_size()
            if whole >= shape.numel():
                return found.as_strided((whole,), (1,), 0)[: shape.numel()].view(shape)
        return torch.empty(shape, dtype=kind, pin_memory=self.pins)


class Reader(Protocol):
    """What reads raw batches of a view: threads or processes."""

    @property
    def words(self) -> str: ...

    @property
    def workers(self) -> int: ...

    def __call__(self, batches: Iterable[list]) -> Iterator[Raw]: ...


class Feed:
    """Batches of images (N, 3, H, W) float32 on their device, labels (N,), and what was odd.

    `batches` are lists of keys. Each pass over a feed reads what they are then.
    """

    def __init__(self, view: View, batches: Batches, reader: Reader, finisher: Finisher) -> None:
        self.view, self.batches, self.reader, self.finisher = view, batches, reader, finisher
        # a pass that was begun before it is asked for, and where
        self._begun: tuple[object, Iterator[Raw]] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        begun, self._begun = self._begun, None
        if begun and begun[0] == self.batches.position:
            raws = begun[1]
        else:
            raws = self.reader(self.batches)
        return self._finished(raws)

    def begin(self) -> None:
        """Read the first batches of the next pass now, while other things are done."""
        if self._begun is None or self._begun[0] != self.batches.position:
            self._begun = self.batches.position, self.reader(self.batches)

    def first(self, count: int) -> Iterator[list]:
        """Yield the first batches only, and read no more than these."""
        return self._finished(self.reader(itertools.islice(iter(self.batches), count)))

    def _finished(self, raws: Iterator[Raw]) -> Iterator[list]:
        if self.finisher.device.type == "cuda":
            yield from self._one_ahead(raws, torch.cuda.Stream(self.finisher.device))
            return
        for raw in raws:
            yield self._finish(raw)

    def _finish(self, raw: Raw) -> list:
        images = raw.inputs(self.finisher)
        labels = torch.tensor([each.label for each in raw.seen])
        return [images, labels, self.view.told(raw.seen)]

    def _one_ahead(self, raws: Iterator[Raw], stream: torch.cuda.Stream) -> Iterator[list]:
        """Copy and normalise a batch beside the network's work on the one before it."""
        waiting: list | None = None
        copied: Any = None
        for raw in raws:
            with torch.cuda.stream(stream):
                batch = self._finish(raw)
                ready = stream.record_event()
            if waiting:
                yield self._handed(waiting, copied)
            waiting, copied = batch, ready
            # the raw batch's memory is used again
            ready.synchronize()
        if waiting:
            yield self._handed(waiting, copied)

    def _handed(self, batch: list, copied: Any) -> list:
        """Let the network's work wait for a batch that another stream has made."""
        current = torch.cuda.current_stream(self.finisher.device)
        current.wait_event(copied)
        batch[0].record_stream(current)
        return batch

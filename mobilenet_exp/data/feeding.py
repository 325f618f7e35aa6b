"""Batches of images, read by threads, or by processes, one or more ahead of who takes them.

Threads share one pool and write straight into a batch; decoding and resizing leave Python's
lock. Loading processes are for more readers than that lock allows, and for what draws from
global generators or is not made for threads. Both give the same batches. Knows no data set.
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

    def __call__(self, batches: Iterable[list]) -> "_Pass":
        """Begin to read, and return the raw batches."""
        return _Pass(self, iter(batches))

    def begin(self, keys: list) -> Raw:
        """Let threads read a batch."""
        side = self.view.side(keys[0])
        memory = self._memory(torch.Size((len(keys), side, side, 3)))
        raw = Raw(self.view, keys, memory, self.finisher)
        for task in raw.tasks():
            self.threads.submit(task, self.priority)
        return raw

    def take_back(self, memory: Tensor) -> None:
        """Use a batch's memory for another one."""
        self._free.append(memory)

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


class _Pass(Iterator[Raw]):
    """One pass over lists of keys: raw batches, those to come being read meanwhile."""

    def __init__(self, reader: ThreadReader, keys: Iterator[list]) -> None:
        self.reader, self.keys = reader, keys
        self._ahead = AHEAD if reader.threads.count else 1
        self._under_way: deque[Raw] = deque()
        # what was handed out last, while it may be looked at
        self._handed: deque[Tensor] = deque()
        if reader.threads.count:
            self._fill()

    def __next__(self) -> Raw:
        self._take_back()
        self._fill()
        if not self._under_way:
            raise StopIteration
        self.reader.threads.wait(self._under_way[0].done, self.reader.view)
        raw = self._under_way.popleft()
        raw.check()
        self._handed.append(raw.memory)
        return raw

    def _take_back(self) -> None:
        # what is finished elsewhere was copied there
        keep = 1 if self.reader.finisher is None else self.reader.keep
        if not keep:
            self._handed.clear()
        elif len(self._handed) == keep:
            self.reader.take_back(self._handed.popleft())

    def _fill(self) -> None:
        while len(self._under_way) < self._ahead:
            keys = next(self.keys, None)
            if keys is None:
                return
            self._under_way.append(self.reader.begin(keys))

    def close(self) -> None:
        """Let threads stop reading what nobody will take."""
        for raw in self._under_way:
            raw.is_dropped = True

    def __del__(self) -> None:
        self.close()


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
            return self._finished(begun[1])
        # one that was begun elsewhere, as before a rollback, ends before another begins
        del begun
        return self._finished(self.reader(self.batches))

    def begin(self) -> None:
        """Read the first batches of the next pass now, while other things are done."""
        if self._begun is None or self._begun[0] != self.batches.position:
            self._begun = self.batches.position, self.reader(self.batches)

    def first(self, count: int) -> Iterator[list]:
        """Yield the first batches only, and read no more than these."""
        return self._finished(self.reader(itertools.islice(iter(self.batches), count)))

    def _finished(self, raws: Iterator[Raw]) -> Iterator[list]:
        if self.finisher.device.type == "cuda":
            yield from self._one_ahead(raws, self.finisher.stream)
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

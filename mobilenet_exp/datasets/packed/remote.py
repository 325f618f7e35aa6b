"""Shards at an address (s3, gs, https, ...), read through fsspec and kept in a local cache.

A thread fetches whole shards ahead, as many as the cache may hold; until a shard is there,
and for those that do not fit, each image's own bytes are fetched. What fails is tried
again, a few times.
"""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from filelock import FileLock

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.datasets.listing import part_of
from mobilenet_exp.datasets.packed.shards import Index, is_of, read_part

T = TypeVar("T")
# seconds between two tries of one request, which give a server half a minute to come back
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PIECE = 1 << 24
# bytes by which a server is tried
PROBE = 16
# by which servers tell that a file has changed, as fsspec's file systems name them
MARKS = ("ETag", "Last-Modified", "LastModified", "mtime", "updated", "created", "md5Hash")
# of the cache, which trying again does not mend
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def is_address(root: str) -> bool:
    """Return whether `data.root` is an address, not a folder of this machine."""
    return "://" in root


class Remote:
    """Shards at an address; `cache` is where they are kept, up to `limit` bytes."""

    def __init__(self, address: str, cache: Path, limit: float) -> None:
        self.address, self.cache, self.limit = address.rstrip("/"), cache, limit
        self._process: int | None = None
        self._files: Any = None
        self._path = ""
        self._connect()
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot be made: {error.strerror}"
            raise InputError("data.args.cache", cache, problem) from error

    def _connect(self) -> Any:
        """Return the file system; connections do not outlive a fork."""
        if self._process != os.getpid():
            again = {"skip_instance_cache": True} if self._process else {}
            try:
                self._files, self._path = fsspec.url_to_fs(self.address, **again)
            except (ImportError, ValueError) as error:
                problem = f"{error}; https needs `pip install aiohttp`, s3 s3fs, gs gcsfs"
                raise InputError("data.root", self.address, problem) from error
            self._process = os.getpid()
        return self._files

    def names(self) -> list[str]:
        """Return the files there. Raises InputError for an address that does not answer."""
        try:
            found = self._tried(lambda files: files.ls(self._path, detail=False), self.address)
        except FileNotFoundError as error:
            raise InputError("data.root", self.address, "there is no such folder") from error
        except OSError as error:
            raise InputError("data.root", self.address, str(error)) from error
        return sorted(each.rstrip("/").rpartition("/")[2] for each in found)

    @property
    def root(self) -> str:
        return self.address

    def stamp(self, name: str) -> str:
        """Return a fingerprint of a file: its length, and its checksum or modification time."""
        return _stamp(self._tried(lambda files: files.info(f"{self._path}/{name}"), name))

    def has_changed(self, name: str) -> bool:
        """Return whether an index that was fetched before is another one now.

        Without the address, the cache is used unchanged.
        """
        index, kept = self.cache / name, self.cache / f"{name}.stamp"
        if not index.exists():
            return False
        try:
            stamp = _stamp(self._connect().info(f"{self._path}/{name}"))
            if not kept.exists() and index.read_bytes() == self._connect().cat_file(
                f"{self._path}/{name}"
            ):
                # fetched by an earlier version
                kept.write_text(stamp)
        except FileNotFoundError:
            # made here, of shards without one
            return False
        except Exception as error:
            # each protocol's library has errors of its own
            reason = first_line(error)
            console.line(f"{self.address} does not answer ({reason}); the cache is used unchanged")
            return False
        return not kept.exists() or stamp != kept.read_text()

    def fetch_index(self, name: str) -> None:
        """Bring an index into the cache, and note what tells whether it changes there."""
        stamp = self.stamp(name)
        self.fetch(name)
        (self.cache / f"{name}.stamp").write_text(stamp)

    def forget(self, split: str) -> None:
        """Remove a split's index and shards from the cache."""
        for each in self.cache.iterdir():
            if each.name.startswith(f"{split}.index") or is_of(each.name, split):
                each.unlink(missing_ok=True)

    def gives_parts(self, name: str) -> bool:
        """Return whether the server answers a request for a part of a file with that part."""
        if not self.address.startswith("http"):
            return True

        def probe(files: Any) -> bool:
            address = f"{self._path}/{name}"
            try:
                with files.open(address, "rb", block_size=PROBE, cache_type="none") as file:
                    # the first bytes would come from such a server, too
                    file.seek(PROBE)
                    return len(file.read(PROBE)) == PROBE
            except ValueError:
                # what fsspec raises for an answer that is not the part
                return False

        try:
            return self._tried(probe, name)
        except OSError:
            # it does not answer: the reader of an image tries again, and reports it
            return True

    def size(self, name: str) -> int:
        """Return a file's length in bytes."""
        size = self._tried(lambda files: files.size(f"{self._path}/{name}"), name)
        if size is None:
            raise OSError(f"the server does not tell the length of {name}")
        return int(size)

    def open(self, name: str) -> Any:
        """Open a file for reading at any position."""
        return self._tried(lambda files: files.open(f"{self._path}/{name}", "rb"), name)

    def read(self, shard: str, first: int, size: int) -> bytes:
        try:
            return read_part(self.cache / shard, first, size)
        except FileNotFoundError:
            address = f"{self._path}/{shard}"
            return self._tried(lambda files: files.cat_file(address, first, first + size), shard)

    def fetch(self, name: str) -> Path:
        """Bring a file into the cache, where it has its name once it is whole."""
        there, half = self.cache / name, part_of(self.cache / name)

        def download(files: Any) -> int:
            with files.open(f"{self._path}/{name}", "rb") as source, open(half, "wb") as file:
                while piece := source.read(PIECE):
                    file.write(piece)
                return file.tell()

        try:
            size, wanted = self._tried(download, name), self.size(name)
            if size != wanted:
                raise OSError(f"{name}: received {size:,} of {wanted:,} bytes")
            half.replace(there)
        finally:
            half.unlink(missing_ok=True)
        return there

    def fetch_ahead(self, index: Index) -> threading.Thread:
        """Fetch an index's shards in a thread, one after the other.

        From a server without range requests all are fetched before this returns.
        Raises InputError where the cache does not hold them.
        """
        is_here = all(self._has(name, size) for name, size in index.shards)
        if not is_here and not self.gives_parts(index.shards[0][0]):
            ours = {name for name, _ in index.shards}
            others = [each for each in self.cache.glob("*.tar") if each.name not in ours]
            needed = sum(size for _, size in index.shards)
            needed += sum(each.stat().st_size for each in others)
            if needed > self.limit:
                problem = (
                    f"{self.address} gives no parts of files (it ignores Range), so the cache must "
                    f"hold all shards, {needed / 1e9:.3g} GB; or copy the set to a folder"
                )
                raise InputError("data.args.cache_gb", f"{self.limit / 1e9:g}", problem)
            console.line(f"{self.address} gives no parts of files: all shards are fetched first")
            self._fetch_all(index)
        thread = threading.Thread(target=self._fetch_all, args=(index,), name="shards", daemon=True)
        thread.start()
        return thread

    def _fetch_all(self, index: Index) -> None:
        try:
            # one thread of a machine fetches at a time; the others find what it brought
            with FileLock(self.cache / "fetching.lock"):
                for half in self.cache.glob("*.tar.part-*"):
                    # of a process that was killed
                    half.unlink(missing_ok=True)
                left = self._fetch_what_fits(index)
        except (OSError, NotImplementedError) as error:
            left = f"{self.cache}: {getattr(error, 'strerror', None) or error}"
        if left:
            console.line(f"{left}; what is not in the cache is read from {self.address}")

    def _fetch_what_fits(self, index: Index) -> str:
        """Fetch shards until the cache is full; return why some are left, or nothing."""
        for number, (name, size) in enumerate(index.shards):
            if self._has(name, size):
                continue
            held = sum(each.stat().st_size for each in self.cache.glob("*.tar"))
            if held + size > self.limit:
                limit = f"data.args.cache_gb={self.limit / 1e9:g}"
                return f"{limit} holds {number} of {len(index.shards)} shards"
            self.fetch(name)
        return ""

    def _has(self, name: str, size: int) -> bool:
        there = self.cache / name
        return there.exists() and there.stat().st_size == size

    def _tried(self, action: Callable[[Any], T], what: str) -> T:
        """Run `action` on the file system, and repeat it after a pause if it fails."""
        for wait in (*WAITS, None):
            try:
                return action(self._connect())
            except (FileNotFoundError, InputError):
                raise
            except Exception as error:
                # each protocol's library has errors of its own
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                if wait is None:
                    reason = str(error) or type(error).__name__
                    tries = len(WAITS) + 1
                    problem = f"{what} cannot be read after {tries} tries: {reason}"
                    raise OSError(problem) from error
                time.sleep(wait)
        raise AssertionError


def _stamp(facts: dict[str, Any]) -> str:
    marks = [facts[key] for key in MARKS if facts.get(key)]
    return " ".join(map(str, [facts.get("size"), *marks]))


def default_cache(address: str) -> Path:
    """Return the cache of an address in the user's own cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return Path(home) / "mobilenet_exp" / f"shards-{name}"

"""Packed sets at an address: fetched ahead, read by ranges meanwhile, tried again."""

import errno
import functools
import http.server
import threading
from typing import ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from mobilenet_exp import compose
from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.data.loaders import LoaderOptions, build_loaders
from mobilenet_exp.datasets.packed import remote
from mobilenet_exp.datasets.packed.packing import pack


class Flaky(MemoryFileSystem):
    """A server in memory that does not answer the next `down` requests for images."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    down = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _answer(self) -> None:
        if Flaky.down > 0:
            Flaky.down -= 1
            raise ConnectionResetError("the server is gone")

    def cat_file(self, path, start=None, end=None, **options):
        self._answer()
        return super().cat_file(path, start, end, **options)

    def open(self, path, mode="rb", **options):
        if mode == "rb":
            self._answer()
        return super().open(path, mode, **options)


@pytest.fixture
def address(folder, tmp_path, monkeypatch):
    """A set that is packed and put on the server."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.down = 0
    words = ("data=imagefolder", f"data.root={folder}", f"out={tmp_path}/packed", "shard_images=3")
    out = pack(compose(*words, program="pack"))
    server = Flaky()
    for path in out.iterdir():
        server.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    return "flaky://bucket/set"


def _loaders(root: str, cache, **options):
    data = DataConfig(
        name="packed", root=root, batch_size=7, resolution=32, augment="none",
        args={"cache": str(cache), **options},
    )  # fmt: skip
    return build_loaders(data, seed=0, options=LoaderOptions(workers=2))


def _wait_for_fetching() -> None:
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join(20)


def _images(loaders) -> torch.Tensor:
    return torch.cat([images for images, *_ in loaders.train])


def test_a_set_at_an_address_is_the_packed_set(address, tmp_path):
    expected = _images(_loaders(str(tmp_path / "packed"), tmp_path))
    assert torch.equal(_images(_loaders(address, tmp_path / "cache")), expected)
    _wait_for_fetching()
    names = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert names == {path.name for path in (tmp_path / "packed").glob("*.tar")}
    # from now on nothing is asked for
    Flaky.down = 10**9
    assert torch.equal(_images(_loaders(address, tmp_path / "cache")), expected)


def test_what_does_not_fit_into_the_cache_is_read_from_the_address(address, tmp_path, capsys):
    expected = _images(_loaders(str(tmp_path / "packed"), tmp_path))
    loaders = _loaders(address, tmp_path / "cache", cache_gb=1e-6)
    assert torch.equal(_images(loaders), expected)
    _wait_for_fetching()
    assert not list((tmp_path / "cache").glob("*.tar*[0-9]"))
    line = "data.args.cache_gb=1e-06 holds 0 of 3 shards; what is not in the cache is read from"
    assert line in capsys.readouterr().out


def test_a_server_that_comes_back_is_asked_again(address, tmp_path):
    expected = _images(_loaders(str(tmp_path / "packed"), tmp_path))
    Flaky.down = 2
    assert torch.equal(_images(_loaders(address, tmp_path / "cache", cache_gb=1e-6)), expected)


def test_a_server_that_stays_away_is_one_line(address, tmp_path):
    loaders = _loaders(address, tmp_path / "cache", cache_gb=1e-6)
    _wait_for_fetching()
    Flaky.down = 10**9
    words = r"cannot be read after 3 tries: the server is gone; to resume"
    with pytest.raises(RunError, match=words):
        _images(loaders)
    with pytest.raises(InputError, match=r"data.root=flaky://bucket/none: "):
        _loaders("flaky://bucket/none", tmp_path / "other")
    words = r"nothing://set: .* not known.*; https needs `pip install aiohttp`, s3 s3fs"
    with pytest.raises(InputError, match=words):
        _loaders("nothing://set", tmp_path / "other")


def test_half_a_shard_is_never_taken_for_a_whole_one(address, tmp_path, monkeypatch, capsys):
    """The disk of the cache is full: the run goes on, from the address."""
    expected = _images(_loaders(str(tmp_path / "packed"), tmp_path))

    def full(self, name):
        (self.cache / f"{name}.part-1").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = tmp_path / "cache"
    _loaders(address, cache, cache_gb=1e-6)
    _wait_for_fetching()
    monkeypatch.setattr(remote.Remote, "fetch", full)
    loaders = _loaders(address, cache)
    assert torch.equal(_images(loaders), expected)
    _wait_for_fetching()
    assert f"{cache}: No space left on device; what is not in" in capsys.readouterr().out
    assert not list(cache.glob("*.tar"))


def test_a_set_that_changed_at_its_address_is_fetched_anew(address, tmp_path, capsys):
    cache = tmp_path / "cache"
    before = _images(_loaders(address, cache))
    _wait_for_fetching()
    server, name = Flaky(), "/bucket/set/train.index"
    # the same set again: another time there
    server.pipe_file(name, server.cat_file(name))
    assert torch.equal(_images(_loaders(address, cache)), before)
    assert "train.index has changed there; all is fetched anew" in capsys.readouterr().out
    _wait_for_fetching()
    _loaders(address, cache)
    assert "fetched anew" not in capsys.readouterr().out


def test_a_server_that_gives_no_parts_of_files(address, tmp_path, capsys):
    """As `python -m http.server`: all shards are fetched first, or one line says what to do."""
    packed = tmp_path / "packed"
    handler = functools.partial(_Quiet, directory=str(packed))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        expected = _images(_loaders(str(packed), tmp_path))
        assert torch.equal(_images(_loaders(root, tmp_path / "cache")), expected)
        assert "gives no parts of files: all shards are fetched first" in capsys.readouterr().out
        words = r"cache_gb=1e-06: http.* gives no parts of files .* the cache must hold all"
        with pytest.raises(InputError, match=words):
            _loaders(root, tmp_path / "small", cache_gb=1e-6)
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Print nothing."""

"""Decoding of JPEG files, or of a region, by nvImageCodec on the CPU, where it is installed.

No other module imports nvImageCodec.
"""

import os
import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mobilenet_exp.core.streams import silenced


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


# nvImageCodec's decoder is used by one thread at a time
_own = threading.local()


def decode_region(stream: Any, box: Box | None) -> np.ndarray | None:
    """Decode by nvImageCodec; None where it refuses."""
    codec = library()
    if getattr(_own, "process", None) != os.getpid():
        # a decoder does not outlive a fork
        _own.process = os.getpid()
        _own.decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
        )
        _own.params = codec.DecodeParams(apply_exif_orientation=False)
    if box is not None:
        ends = (box.top + box.height, box.left + box.width)
        stream = stream.get_sub_code_stream(region=codec.Region(box.top, box.left, *ends))
    image = _own.decoder.decode(stream, params=_own.params)
    return None if image is None else np.asarray(image.cpu())


_loading = threading.Lock()


@cache
def library() -> Any:
    """Return nvImageCodec, or None where it is not installed or cannot be loaded.

    Call it before threads are started: standard error is hidden while it loads, because it
    prints there which CUDA libraries are missing.
    """
    # it reports each damaged file by itself
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    with _loading, silenced():
        try:
            from nvidia import nvimgcodec
        except (ImportError, OSError):
            return None
    return nvimgcodec


def decoder_words() -> str:
    """Name what decodes JPEG files."""
    codec = library()
    return f"nvImageCodec {codec.__version__}" if codec else "Pillow"

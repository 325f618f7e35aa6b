"""What int8 costs a released network, by our export and by other quantisers.

python -m benchmarks.int8 weights=mobilenet_v2-b0353104.pth data.root=PHOTOS

Each quantiser gets the same calibration images (of the training share) and answers the same
held-out ones; the table says for how many its best answer is that of the network in float32,
and how far its answers are from it. Ours is written as a file and read back, with weights of 7
and of 8 bits, in three runtimes. NNCF (`pip install nncf`) and ONNX Runtime's own quantiser
stand beside it where they are installed.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mobilenet_exp import compose
from mobilenet_exp.core import console
from mobilenet_exp.core.streams import silenced
from mobilenet_exp.data.loaders import build_eval_loader
from mobilenet_exp.deploy.export import export
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import FORMATS, to_onnx
from mobilenet_exp.deploy.samples import calibration_images
from mobilenet_exp.evaluation.scoring import eval_data
from mobilenet_exp.weights.load import LoadedModel, load_model
from mobilenet_exp.weights.runtime_files import open_onnx, open_openvino, read_exported

PART = 20


def main(words: list[str]) -> None:
    """Print the table."""
    words = ["model=v2", "data=photos", *words]
    config = compose(*words, "int8=true", program="export")
    loaded = load_model(config)
    calibration = torch.cat(calibration_images(config, loaded))
    feed, share = build_eval_loader(eval_data(config.data, loaded))
    images = torch.cat([batch.contiguous() for batch, *_ in feed])
    console.line(
        f"{loaded.origin}: {len(calibration)} images of the training share, "
        f"{len(images)} of {len(share.images)} held out; {_flags()}"
    )
    expected = _answers(loaded.model, images)
    rows = []
    for name, seconds, forward in _quantised(words, loaded, calibration):
        found = _answers(forward, images)
        same = 100 * (found.argmax(1) == expected.argmax(1)).float().mean().item()
        off = ((found - expected).norm() / expected.norm()).item()
        rows.append((name, f"{same:.1f}", f"{off:.3f}", f"{seconds:.0f}"))
        console.line(" | ".join(rows[-1]))
    columns = ("quantiser", "same best\nanswer %", "difference\n(norms)", "seconds")
    console.table("int8 beside float32", columns, rows)


def _flags() -> str:
    known = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    flags = [each for each in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if each in known]
    return " ".join(flags) or "an unknown processor"


def _answers(forward: Callable, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([forward(part.contiguous()) for part in images.split(PART)])


def _quantised(
    words: list[str], loaded: LoadedModel, calibration: Tensor
) -> Iterator[tuple[str, float, Callable]]:
    """Yield what quantises, the seconds that it took, and what answers then."""
    with tempfile.TemporaryDirectory() as folder:
        for bits in (8, 7):
            for name in ("onnx", "openvino", "executorch"):
                path = f"{folder}/{name}{bits}{FORMATS[name].ending}"
                more = (f"format={name}", "int8=true", f"int8_weights={bits}", f"out={path}")
                started = time.perf_counter()
                export(compose(*words, *more, program="export"))
                seconds = time.perf_counter() - started
                yield f"ours, {name}, weights of {bits} bits", seconds, read_exported(path)[0]
        float_file = Path(folder) / "float.onnx"
        float_file.write_bytes(to_onnx(folded(loaded.model), calibration))
        yield from _of_onnxruntime(float_file, calibration)
        yield from _of_nncf(float_file, calibration)


def _of_onnxruntime(file: Path, calibration: Tensor) -> Iterator[tuple[str, float, Callable]]:
    try:
        from onnxruntime import quantization
    except ImportError:
        return

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration.split(1))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    for reduced in (False, True):
        out = file.with_name(f"theirs{reduced}.onnx")
        started = time.perf_counter()
        with silenced():
            quantization.quantize_static(
                str(file), str(out), Reader(), per_channel=True, reduce_range=reduced
            )
        seconds = time.perf_counter() - started
        words = ", reduced range" if reduced else ""
        yield f"ONNX Runtime's{words}", seconds, open_onnx(str(out), "runtimes", None)[0]


def _of_nncf(file: Path, calibration: Tensor) -> Iterator[tuple[str, float, Callable]]:
    try:
        import nncf
        import openvino
    except ImportError:
        return
    data = nncf.Dataset(calibration.split(1), lambda batch: batch.numpy())
    presets = {"": {}, ", accurate bias correction": {"fast_bias_correction": False}}
    for words, options in presets.items():
        started = time.perf_counter()
        network = nncf.quantize(
            openvino.Core().read_model(str(file)), data, subset_size=len(calibration), **options
        )
        seconds = time.perf_counter() - started
        yield f"NNCF{words}", seconds, open_openvino(network, "runtimes", None)[0]


if __name__ == "__main__":
    main(sys.argv[1:])

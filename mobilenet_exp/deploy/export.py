"""A trained network as a file of another runtime, checked against the network itself."""

import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mobilenet_exp.config.schema import ExportConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.data.finishing import Finisher
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.data.transforms import EvalTransform
from mobilenet_exp.datasets.images import open_file
from mobilenet_exp.datasets.photos import find_photos
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import FORMATS, Format
from mobilenet_exp.machine.provenance import git_commit, installed, versions
from mobilenet_exp.weights.exported import ExportedModel, Forward, Record, library, read_exported
from mobilenet_exp.weights.loaded import LoadedModel, load_chosen


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a network into a file of another runtime; print where, how large and how exact.

    BatchNorm is folded into the convolutions. The file is opened again and its answers to real
    photographs compared with the network's. Returns what was printed: `path`, `bytes`,
    `difference`. Raises InputError before anything is written, and RunError, with nothing
    written, where answers differ by more than `tolerance`.
    """
    import_modules(config.run.imports)
    form = FORMATS[config.format]
    for each in form.libraries:
        library(each, "format", config.format)
    loaded = load_chosen(config)
    if isinstance(loaded.model, ExportedModel):
        raise InputError("weights", config.weights, "is an exported file already")
    if config.resolution:
        sized = replace(loaded.preprocessing, resolution=config.resolution)
        loaded = replace(loaded, preprocessing=sized)
    path = _path(config, loaded, form)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    images = real_images(loaded.preprocessing)
    difference = _write(config, loaded, form, path, images)
    size = sum(each.stat().st_size for each in _parts(path))
    _print(config, loaded, path, size, difference, len(images))
    return {"path": str(path), "bytes": size, "difference": difference}


def _path(config: ExportConfig, loaded: LoadedModel, form: Format) -> Path:
    if config.out is not None:
        if Path(config.out).suffix != form.ending:
            problem = f"{config.format} files end in {form.ending}"
            raise InputError("out", config.out, problem)
        return Path(config.out)
    if loaded.folder:
        return loaded.folder / "exported" / (Path(loaded.origin).stem + form.ending)
    net = f"{loaded.config.name}-w{loaded.config.width_mult:g}"
    side = loaded.preprocessing.resolution
    return Path(f"{net}-r{side}-{loaded.digest[:8]}{form.ending}")


def _parts(path: Path) -> list[Path]:
    """Return the files of an export: OpenVINO's weights lie beside its network."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _write(
    config: ExportConfig, loaded: LoadedModel, form: Format, path: Path, images: Tensor
) -> float:
    """Write the file whole or not at all, and return how far its answers are."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    except OSError as error:
        raise InputError("out", path, f"cannot be written: {error.strerror}") from error
    try:
        with torch.no_grad():
            form.write(folded(loaded.model), images, place / path.name, _record(loaded).to_json())
        forward, _ = read_exported(str(place / path.name), key="format")
        difference = _difference(forward, loaded, images)
        if not difference <= config.tolerance:
            words = f"by {difference:.1e}, more than tolerance={config.tolerance:g}"
            raise RunError(f"{path} is not written: its answers differ from the network's {words}")
        # the weights first: what is there is whole
        for each in reversed(_parts(place / path.name)):
            os.replace(each, path.with_name(each.name))
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return difference


@torch.inference_mode()
def _difference(forward: Forward, loaded: LoadedModel, images: Tensor) -> float:
    """Return how far answers are from the network's own, in shares of the largest."""
    expected = loaded.model(images)
    found = forward(images.contiguous())
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _record(loaded: LoadedModel, form: str = "float32, BatchNorm folded") -> Record:
    stem = loaded.model.stem.conv.stride[0]
    return Record(
        model=asdict(loaded.config) | {"stem_stride": stem},
        num_classes=loaded.num_classes,
        preprocessing=asdict(loaded.preprocessing),
        dialect=asdict(loaded.model.dialect),
        classes=loaded.classes,
        origin=loaded.origin,
        digest=loaded.digest,
        source=loaded.source,
        form=form,
        made_by={
            "git_commit": git_commit(),
            "versions": versions()
            | installed(("onnx", "onnxscript", "openvino", "executorch", "torchao")),
        },
    )


def real_images(prepared: Preprocessing) -> Tensor:
    """Return photographs of installed packages and parts of them, as inputs (N, 3, H, W)."""
    transform = EvalTransform(prepared, exact=False)
    side = prepared.resolution
    pixels = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(find_photos()):
            photo = Image.open(path).convert("RGB")
            half = photo.crop((0, 0, photo.width // 2, photo.height // 2))
            for name, picture in (("whole", photo), ("part", half)):
                file = Path(folder) / f"{number}-{name}.png"
                picture.save(file, compress_level=1)
                pixels.append(torch.empty((side, side, 3), dtype=torch.uint8))
                transform(open_file(file), pixels[-1].numpy())
    finish = Finisher(prepared.mean, prepared.std, torch.device("cpu"))
    return finish(torch.stack(pixels), []).contiguous()


def _print(
    config: ExportConfig, loaded: LoadedModel, path: Path, size: int, difference: float, count: int
) -> None:
    model = loaded.model
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    console.line(f"{loaded.origin}: {', '.join(loaded.notes)}")
    console.line(f"{path}: {config.format}, {size / 1e6:.1f} MB (weights {weights / 1e6:.1f} MB)")
    console.line(
        f"answers to {count} photographs differ from the network's by {difference:.1e} of the "
        f"largest; tolerance {config.tolerance:g}"
    )
    console.line(f"score it: python eval.py weights={path} data=...")

"""A trained network as a file of another runtime, checked against the network itself."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenet_exp.config.schema import ExportConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, RunError, first_line, in_plain_words
from mobilenet_exp.core.files import from_here
from mobilenet_exp.core.libraries import library
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import FORMATS, Format
from mobilenet_exp.deploy.int8_check import check_answers
from mobilenet_exp.deploy.quantise import LIBRARIES as FOR_INT8
from mobilenet_exp.deploy.quantise import from_calibration, from_qat
from mobilenet_exp.deploy.samples import calibration_images, real_images
from mobilenet_exp.machine.provenance import git_commit, versions
from mobilenet_exp.models.fake_quantized import FakeQuantized
from mobilenet_exp.weights.load import LoadedModel, load_model
from mobilenet_exp.weights.runtime_files import (
    ExportedModel,
    ExportMetadata,
    Forward,
    read_exported,
)

# largest difference of an answer of a file in float32
TOLERANCE = 1e-4
# images that go through a network at once
PART = 32


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a network into a file of another runtime; print where, how large and how exact.

    BatchNorm is folded into the convolutions. The file is opened again, and its answers to real
    photographs, or to the images of its int8 calibration, are compared with the
    network's. Returns what was printed: `path`, `bytes`, `difference`, and `agreement`, the
    fraction of images whose best answer is the network's. Raises InputError before anything is
    written, and RunError, with nothing written, where answers differ by more than `tolerance`.
    """
    import_modules(config.run.imports)
    form = FORMATS[config.format]
    for each in form.libraries:
        library(each, "format", config.format)
    if config.int8 and not form.has_int8:
        able = ", ".join(name for name, each in FORMATS.items() if each.has_int8)
        raise InputError("int8", True, f"is not for {config.format}; it is for {able}")
    for each in FOR_INT8 if config.int8 else ():
        library(each, "int8", True)
    loaded = load_model(config)
    if isinstance(loaded.model, ExportedModel):
        raise InputError("weights", config.weights, "is an exported file already")
    if config.int8:
        # what the file is compared with; refused before anything is calibrated
        _ = loaded.network
        _check_calibration(config, loaded)
        config = replace(config, int8_weights=_weight_bits(config, loaded))
    if config.resolution:
        sized = replace(loaded.preprocessing, resolution=config.resolution)
        loaded = replace(loaded, preprocessing=sized)
    path = from_here(_path(config, loaded, form))
    if _needs_calibration(config, loaded):
        images = torch.cat(calibration_images(config, loaded))
    else:
        images = real_images(loaded.preprocessing)
    agreement = _write(config, loaded, form, path, images)
    size = sum(each.stat().st_size for each in _parts(path))
    _print(config, loaded, path, size, agreement, len(images))
    return {"path": str(path), "bytes": size, **agreement._asdict()}


def _weight_bits(config: ExportConfig, loaded: LoadedModel) -> int:
    """Return the bits of a file's weights. Raises InputError for others than in training."""
    usual = 8 if config.format == "executorch" else 7
    if loaded.trained_by is None or loaded.fake_quantized is None:
        return config.int8_weights or usual
    learned = loaded.trained_by.train.int8_weights
    if config.int8_weights not in (None, learned):
        problem = f"the network was trained with {learned} (train.int8_weights)"
        raise InputError("int8_weights", config.int8_weights, problem)
    if learned > usual and config.int8_weights is None:
        problem = f"the network has weights of {learned} bits, correct only where the processor"
        way_out = f"has VNNI, AMX or Arm's dot product; int8_weights={learned} says that it does"
        raise InputError("int8_weights", None, f"{problem} {way_out}")
    return learned


def _check_calibration(config: ExportConfig, loaded: LoadedModel) -> None:
    """Raise InputError for calibration images that would have no effect."""
    if _needs_calibration(config, loaded):
        return
    count = config.calibration_images
    for key, value, default in (
        ("data", config.data.name, None),
        ("calibration_images", count, ExportConfig.calibration_images),
    ):
        if value != default:
            problem = "is not used: the ranges come from the training (train.quantise)"
            raise InputError(key, value, problem)


def _path(config: ExportConfig, loaded: LoadedModel, form: Format) -> Path:
    if config.out is not None:
        if Path(config.out).suffix != form.ending:
            problem = f"{config.format} files end in {form.ending}"
            raise InputError("out", config.out, problem)
        return Path(config.out)
    bits = "-int8" if config.int8 else ""
    if loaded.folder:
        side = f"-r{config.resolution}" if config.resolution else ""
        suffix = f"{side}{'' if config.ema else '-noema'}{bits}"
        return loaded.folder / "exported" / (Path(loaded.origin).stem + suffix + form.ending)
    net = f"{loaded.config.name}-w{loaded.config.width_mult:g}"
    side = f"-r{loaded.preprocessing.resolution}"
    return Path(f"{net}{side}-{loaded.digest[:8]}{bits}{form.ending}")


def _parts(path: Path) -> list[Path]:
    """Return the files of an export: OpenVINO's weights lie beside its network."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


class Agreement(NamedTuple):
    """How far answers are from the network's own, and the fraction with the same best one.

    `difference` is the largest one, relative to the largest answer.
    """

    difference: float
    agreement: float


def _write(
    config: ExportConfig,
    loaded: LoadedModel,
    form: Format,
    path: Path,
    images: Tensor,
) -> Agreement:
    """Write the file whole or not at all, and return how well it answers."""
    limit = config.tolerance or (float("inf") if config.int8 else TOLERANCE)
    for each in _parts(path)[1:]:
        if each.exists() and not path.exists():
            raise InputError("out", path, f"would overwrite {each}, which belongs to another file")
    with _folder_for(path) as folder:
        draft = folder / path.name
        written = _fill(config, form, loaded, images, draft)
        forward, _ = read_exported(str(draft), key="format")
        if config.int8:
            try:
                some = images[:: -(-len(images) // PART)].contiguous()
                check_answers(forward, written, loaded.model, some, config.format)
            except RunError as error:
                raise RunError(f"{path} is not written: {error}") from error
        found = _compare(forward, loaded.network if config.int8 else loaded.model, images)
        if not found.difference <= limit:
            by = f"by {found.difference:.1e}, more than tolerance={limit:g}"
            raise RunError(f"{path} is not written: its answers differ from the network's {by}")
        if len(_parts(path)) > 1:
            # an old network has old weights beside it, or does not open
            path.unlink(missing_ok=True)
        for each in reversed(_parts(draft)):
            os.replace(each, path.with_name(each.name))
    return found


@contextlib.contextmanager
def _folder_for(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to write in; of a refused file no folder is left."""
    made = [each for each in path.parents if not each.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    except OSError as error:
        raise InputError("out", path, f"cannot be written: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # but those in which something is
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


def _fill(
    config: ExportConfig, form: Format, loaded: LoadedModel, images: Tensor, path: Path
) -> nn.Module:
    """Write a network into a file, and return it as it was written.

    Raises RunError for what a library does not take.
    """
    metadata = _metadata(config, loaded).to_json()
    try:
        with torch.no_grad():
            model = _in_int8(config, loaded, images) if config.int8 else folded(loaded.model)
            form.write(model, images, path, metadata)
            return model
    except (InputError, RunError, OSError):
        raise
    except Exception as error:
        if (plain := in_plain_words(error)) is not error:
            raise plain from error
        # as many kinds as there are libraries; of full disks, too
        raise RunError(f"{path.name} could not be written: {first_line(error)}") from error


def _needs_calibration(config: ExportConfig, loaded: LoadedModel) -> bool:
    """Return whether int8 scales are needed that the network was not trained with."""
    return config.int8 and loaded.fake_quantized is None


def _int8(config: ExportConfig, loaded: LoadedModel) -> str:
    """Say what an int8 file holds."""
    learned = "" if _needs_calibration(config, loaded) else " (QAT)"
    return f"int8{learned}, weights of {config.int8_weights} bits"


def _in_int8(config: ExportConfig, loaded: LoadedModel, images: Tensor) -> nn.Module:
    """Return the network in int8: as it was trained, or with scales from `images`."""
    if isinstance(loaded.network, FakeQuantized):
        return from_qat(loaded.network, images[:2])
    assert config.int8_weights is not None
    network = folded(loaded.model)
    return from_calibration(network, images.split(PART), weight_bits=config.int8_weights)


@torch.inference_mode()
def _compare(forward: Forward, network: nn.Module, images: Tensor) -> Agreement:
    expected = torch.cat([network(part) for part in images.split(PART)])
    found = torch.cat([forward(part.contiguous()) for part in images.split(PART)])
    difference = (found - expected).abs().max() / expected.abs().max()
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    return Agreement(difference.item(), same.item())


def _metadata(config: ExportConfig, loaded: LoadedModel) -> ExportMetadata:
    bits = _int8(config, loaded) if config.int8 else "float32"
    return ExportMetadata(
        model=asdict(loaded.config) | {"stem_stride": getattr(loaded.model, "stem_stride", None)},
        num_classes=loaded.num_classes,
        preprocessing=asdict(loaded.preprocessing),
        dialect=loaded.variant,
        classes=loaded.classes,
        names=loaded.names(),
        origin=loaded.origin,
        digest=loaded.digest,
        source=loaded.source,
        form=f"{bits}, BatchNorm folded",
        made_by={
            "git_commit": git_commit(),
            "versions": versions("onnx", "onnxscript", "openvino", "executorch", "torchao"),
        },
    )


def _print(
    config: ExportConfig,
    loaded: LoadedModel,
    path: Path,
    size: int,
    found: Agreement,
    count: int,
) -> None:
    state = loaded.model.state_dict().values()
    weights = sum(value.numel() * value.element_size() for value in state)
    console.line(f"{loaded.origin}: {', '.join(loaded.notes)}")
    bits = f" in {_int8(config, loaded)}" if config.int8 else ""
    console.line(
        f"{path}: {config.format}{bits}, {size / 1e6:.1f} MB (weights {weights / 1e6:.1f} MB)"
    )
    calibrated = _needs_calibration(config, loaded)
    what = "training images" if calibrated else "photographs"
    console.line(
        f"answers to {count} {what} differ from the network's by {found.difference:.1e} of the "
        f"largest at most; the best answer is the same for {100 * found.agreement:.1f} %"
    )
    console.line(f"score it: python eval.py weights={path} data=...")

"""Writes docs/LATENCY.md and its pictures from recorded benchmarks: `make latency`.

Every figure on the page comes from docs/latency.json and, of GPUs, docs/latency_cuda_*.json,
which bench.py has written.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docs.build import timings
from docs.build.pages import DOCS, filled, run
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy import pictures
from mobilenet_exp.deploy.by_layer import LayerTime

RECORD, PAGE = DOCS / "latency.json", DOCS / "LATENCY.md"
OF_GPUS = "latency_cuda_*.json"
# networks and batch sizes at which a MobileNet may be no faster, as an exception
MOST_BEHIND = 2
MADDS, TOP1, LAYERS = (DOCS / f"latency_{name}.svg" for name in ("madds", "top1", "layers"))

TEXT = """# How fast are they?

The old V1 repository's table, its five networks at batch 16 and 1, timed anew with V2, V3 and V4
beside them. Written by `make latency` from [latency.json](latency.json), which
`bench.py` measured on {where}, {date}
({versions}).{of_gpus}
{time} Any network of yours is timed the same way: see [Time and export](deploy.md).

{tables}

madds: multiply-adds of one image; a cell is a network in a runtime at a batch size. In brackets:
how many times as fast as the same network run by torch's operators one by one, in
NCHW, as torchvision's examples do. Each answer was compared with torch's before it was timed. The
pictures are of float32.

![latency over multiply-adds](latency_madds.svg)

![published top-1 over latency](latency_top1.svg)

{int8}

## Fewer multiply-adds, less time, but not as much less

{faster}

{promises}

Two things stand between. A depthwise convolution does few multiply-adds for each value that
it loads and stores, and activations, squeeze-excite and shortcuts do none: their time is memory's.
And each operator of a small map costs the same to start as one of a large map, which weighs most
at batch 1 and in `eager`. Counted in multiply-adds a second, {reference} reaches
{reference_peak:.0f} % of a large matrix product's on this machine at batch {large} in its fastest
runtime ({reference_peak_note}), {example} {example_peak:.0f} %. Where its time goes, with BatchNorm
folded:

![time and multiply-adds of {example} by block](latency_layers.svg)

{kinds}

{gpus}## Why the old table said that MobileNet is slowest

The old repository printed the seconds of a single call in training mode on a GPU, after one other,
without waiting for the GPU: mostly the time to launch the kernels. By a comment of that year
(pytorch/vision PR 156) PyTorch called cuDNN once for each group of a convolution. V1's depthwise
convolutions have 4,960, and 73 and 77 ms at batch 16 and 1 fit that; it was not measured here. The
same method on the processor above, where each call is waited for, beside the figures of this page:

{calls}
"""


# what opens the section about GPUs
OF_SMALL_BATCHES = """
A GPU has done a kernel's work on few images before the next one is launched, so that one by one a
small network takes as long as the CPU needs to launch its kernels. CUDA graphs record them and
launch all at once.
"""


def read(path: Path) -> dict[str, Any]:
    """Read a benchmark's latency.json. Raises ValueError if it is none."""
    try:
        found = json.loads(path.read_text())
        found["machine"]["where"], found["rows"], found["one_call"], found["layers"]
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"is no benchmark's latency.json: {error}") from error
    return found


def record_of(found: dict[str, Any]) -> Path:
    """Return where the page keeps a benchmark: one of a CPU, one of GPUs for each precision.

    Raises ValueError for what has no place there.
    """
    machine = found["machine"]
    if machine["where"].startswith("cuda"):
        return DOCS / OF_GPUS.replace("*", machine["precision"])
    if not machine["where"].startswith("cpu, float32"):
        words = "which has no place on the page: it has CPUs in float32, and CUDA devices"
        raise ValueError(f"was measured on {machine['where']}, {words}")
    return RECORD


def check_conclusions(found: dict[str, Any]) -> None:
    """Raise ValueError for the first statement of the page that the figures contradict.

    Those about int8 are made of their figures, whatever these are.
    """
    rows = timings.by_cell(timings.in_float(found["rows"]))
    runtimes = {runtime for _, runtime, _ in rows}
    if not found["layers"] or not found["one_call"] or "folded" not in runtimes:
        raise ValueError("was not made with layers=NETWORK method=one_call and runtime folded")
    if not any(model == timings.REFERENCE for _, _, model in rows):
        raise ValueError(f"the page compares with {timings.REFERENCE}, which was not timed")
    for (_, runtime, model), row in rows.items():
        if row["problem"]:
            raise ValueError(f"{model} was not timed in {runtime}: {row['problem']}")
    for (size, runtime, model), row in rows.items():
        reference = rows.get((size, runtime, timings.REFERENCE))
        if reference is None:
            raise ValueError(f"{model} was timed in {runtime}, {timings.REFERENCE} was not")
        if not model.startswith(timings.MOBILE):
            continue
        times = reference["latency_ms"] / row["latency_ms"]
        if times >= reference["madds"] / row["madds"]:
            words = f"{model} gains less time than multiply-adds, in {runtime} at batch {size}"
            raise ValueError(f"the page says that {words}; these figures do not show it")
    behind = timings.no_faster(list(rows.values()))
    if len(behind) > MOST_BEHIND:
        words = f"MobileNets are faster than {timings.REFERENCE}"
        raise ValueError(f"the page says that {words}; they are not: {'; '.join(behind)}")


def check_gpu_conclusions(found: dict[str, Any]) -> None:
    """Raise ValueError unless MobileNets gain by graphs at the smallest batch."""
    cells = timings.by_cell([row for row in found["rows"] if row["latency_ms"]])
    if not cells:
        raise ValueError("holds no network that was timed")
    smallest = min(size for size, _, _ in cells)
    for (size, runtime, model), row in cells.items():
        alone = cells.get((size, timings.ONE_BY_ONE.get(runtime, ""), model))
        is_small = size == smallest and model.startswith(timings.MOBILE)
        if is_small and alone and row["latency_ms"] >= alone["latency_ms"]:
            words = f"launching together gains time in {runtime} at batch {size} for {model}"
            raise ValueError(f"the page says that {words}; these figures do not show it")


def page(found: dict[str, Any], gpus: Sequence[dict[str, Any]]) -> str:
    """Return the page's text, all its figures from a benchmark, and from those on GPUs."""
    machine, rows = found["machine"], timings.in_float(found["rows"])
    large, example = max(row["batch_size"] for row in rows), found["layers_of"]
    rounds, versions = found["config"]["rounds"], machine["versions"]
    named = ("torch", "onnxruntime", "openvino", "executorch")
    return TEXT.format(
        where=machine["where"],
        date=machine["date"],
        of_gpus=f" GPUs: {', '.join(_link(found) for found in gpus)}." if gpus else "",
        versions=", ".join(f"{name} {versions[name]}" for name in named if name in versions),
        time=f"Times are medians of {rounds} interleaved rounds.",
        tables="\n\n".join(
            f"## Batch {size}, ms\n\n{timings.times(rows, size)}" for size in timings.sizes_of(rows)
        ),
        int8=timings.in_8_bits(found["rows"]),
        faster=_faster(rows),
        reference=timings.REFERENCE,
        promises=timings.promises(rows),
        reference_peak=100 * timings.fastest(rows, large, timings.REFERENCE)["peak_share"],
        reference_peak_note="a 3x3 convolution may do fewer multiplications than are counted",
        large=large,
        example=example,
        example_peak=100 * timings.fastest(rows, large, example)["peak_share"],
        kinds=timings.kinds(found),
        gpus=_gpus(gpus),
        calls=timings.calls(found),
    )


def _faster(rows: list[dict[str, Any]]) -> str:
    """Say that MobileNets are faster than the reference, and where they are not."""
    behind = timings.no_faster(rows)
    but = f" except {'; '.join(behind)}" if behind else ""
    return filled(
        f"Every MobileNet here is faster than {timings.REFERENCE} in every runtime in float32 on "
        f"this processor{but}. Their multiply-adds promise more:"
    )


def _link(found: dict[str, Any]) -> str:
    name = record_of(found).name
    return f"[{name}]({name})"


def _gpus(gpus: Sequence[dict[str, Any]]) -> str:
    """Return the section about GPUs; nothing where none was measured."""
    if not gpus:
        return ""
    parts = ["## On a GPU", filled(" ".join(OF_SMALL_BATCHES.split()))]
    for found in gpus:
        machine, rows = found["machine"], found["rows"]
        rounds, torch = found["config"]["rounds"], machine["versions"]["torch"]
        where = f"{machine['where']}, torch {torch}, {machine['date']}, {rounds} rounds"
        for size in timings.sizes_of(rows):
            parts += [f"{where}, batch {size}, ms:", timings.times(rows, size)]
        parts += [*timings.not_timed(rows), timings.gpu_words(found)]
        if any(call["published_ms"] for call in found["one_call"]):
            parts += ["By the old repository's method, see below:", timings.calls(found)]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def digest(found: dict[str, Any]) -> str:
    """Return what tells the figures of one benchmark from those of another."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def draw(found: dict[str, Any], madds: Path, top1: Path, layers: Path) -> None:
    """Draw the pictures; the digest of the figures stands in each file's description."""
    about = f"figures sha256 {digest(found)}"
    pictures.draw_madds(timings.in_float(found["rows"]), madds, about)
    pictures.draw_top1(timings.in_float(found["rows"]), top1, about)
    rows = [LayerTime(**each) for each in found["layers"]]
    pictures.draw_layers(rows, found["layers_of"], layers, about)


def main(words: list[str]) -> None:
    """Write the page and its pictures from the last records; files that are named replace them."""
    new: dict[Path, dict[str, Any]] = {}
    for word in words:
        path, found = _checked(Path(word))
        if path in new:
            raise InputError("latency", word, f"is another benchmark for {path.name}; name one")
        new[path] = found
    kept = [path for path in (RECORD, *sorted(DOCS.glob(OF_GPUS))) if path not in new]
    records = dict(_checked(path) for path in kept) | new
    text = page(records[RECORD], [records[path] for path in sorted({*records} - {RECORD})])
    for path, found in new.items():
        path.write_text(json.dumps(found, indent=1) + "\n")
    draw(records[RECORD], MADDS, TOP1, LAYERS)
    PAGE.write_text(text)
    console.line(f"wrote {PAGE} and its pictures")


def _checked(source: Path) -> tuple[Path, dict[str, Any]]:
    """Read a benchmark; return where the page keeps it, and what it holds.

    Raises InputError for what is none, or does not bear out what the page says.
    """
    try:
        found = read(source)
        path = record_of(found)
        check_conclusions(found) if path == RECORD else check_gpu_conclusions(found)
    except ValueError as error:
        raise InputError("latency", source, str(error)) from error
    return path, found


if __name__ == "__main__":
    run(main)

"""Writes docs/LATENCY.md and its pictures from a recorded benchmark: `make latency`.

Every figure on the page comes from docs/latency.json, which bench.py has written.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy import pictures
from mobilenet_exp.deploy.by_layer import LayerTime
from mobilenet_exp.reports.pages import DOCS, check_checkout, filled, markdown_table

# how runtimes in 8 bits are called, after the one in float32
INT8 = "_int8"
RECORD, PAGE = DOCS / "latency.json", DOCS / "LATENCY.md"
MADDS, TOP1, LAYERS = (DOCS / f"latency_{name}.svg" for name in ("madds", "top1", "layers"))
# what the networks of mobile phones are compared with, and those that are
REFERENCE, MOBILE = "resnet18", ("v1", "v2", "v3", "v4")

TEXT = """# How fast are they?

The old V1 repository's table, its five networks at batch 16 and 1, timed anew with V2, V3 and V4
beside them. Written by `make latency` from [latency.json](latency.json), which
`bench.py` measured on {where}, {date}
({versions}).
{time} Any network of yours is timed the same way: see [Time and export](deploy.md).

{tables}

In brackets: how many times as fast as the same network run by torch's operators one by one, in
NCHW, as torchvision's examples do. Each answer was compared with torch's before it was timed. The
pictures are of float32.

![latency over multiply-adds](latency_madds.svg)

![published top-1 over latency](latency_top1.svg)

{int8}

## Fewer multiply-adds, less time, but not as much less

Every MobileNet here is faster than {reference} in every runtime in float32. Their multiply-adds
promise more:

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

## Why the old table said that MobileNet is slowest

The old repository printed the seconds of a single call in training mode on a GPU, after one other,
without waiting for the GPU: mostly the time to launch the kernels. By a comment of that year
(pytorch/vision PR 156) PyTorch called cuDNN once for each group of a convolution. V1's depthwise
convolutions have 4,960, and 73 and 77 ms at batch 16 and 1 fit that; it was not measured here. The
same method on the machine above, where each call is waited for, beside the figures of this page:

{calls}
"""


def read(path: Path) -> dict[str, Any]:
    """Read a benchmark's latency.json. Raises ValueError if it is none."""
    try:
        found = json.loads(path.read_text())
        found["machine"], found["rows"], found["one_call"], found["layers"]
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"is no benchmark's latency.json: {error}") from error
    runtimes = {row["runtime"] for row in found["rows"]}
    if not found["layers"] or not found["one_call"] or "folded" not in runtimes:
        raise ValueError("was not made with layers=NETWORK method=one_call and runtime folded")
    return found


def in_float(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of runtimes in float32."""
    return [row for row in rows if not row["runtime"].endswith(INT8)]


def check_conclusions(found: dict[str, Any]) -> None:
    """Raise ValueError for the first statement of the page that the figures contradict.

    Those about 8 bits are made of their figures, whatever these are.
    """
    rows = {
        (row["batch_size"], row["runtime"], row["model"]): row for row in in_float(found["rows"])
    }
    if not any(model == REFERENCE for _, _, model in rows):
        raise ValueError(f"the page compares with {REFERENCE}, which was not timed")
    for (_, runtime, model), row in rows.items():
        if row["problem"]:
            raise ValueError(f"{model} was not timed in {runtime}: {row['problem']}")
    for (size, runtime, model), row in rows.items():
        reference = rows.get((size, runtime, REFERENCE))
        if reference is None:
            raise ValueError(f"{model} was timed in {runtime}, {REFERENCE} was not")
        if not model.startswith(MOBILE):
            continue
        times = reference["latency_ms"] / row["latency_ms"]
        if times <= 1:
            words = f"{model} is faster than {REFERENCE} in {runtime} at batch {size}"
            raise ValueError(f"the page says that {words}; these figures do not show it")
        if times >= reference["madds"] / row["madds"]:
            words = f"{model} gains less time than multiply-adds, in {runtime} at batch {size}"
            raise ValueError(f"the page says that {words}; these figures do not show it")


def page(found: dict[str, Any]) -> str:
    """Return the page's text, all its figures from a benchmark.

    Raises ValueError if they do not bear out what the text concludes from them.
    """
    check_conclusions(found)
    machine, rows = found["machine"], in_float(found["rows"])
    large, example = max(row["batch_size"] for row in rows), found["layers_of"]
    rounds, versions = found["config"]["rounds"], machine["versions"]
    named = ("torch", "onnxruntime", "openvino", "executorch")
    return TEXT.format(
        where=machine["where"],
        date=machine["date"],
        versions=", ".join(f"{name} {versions[name]}" for name in named if name in versions),
        time=f"Times are medians of {rounds} interleaved rounds.",
        tables="\n\n".join(_table(rows, size) for size in _sizes(rows)),
        int8=_int8(found["rows"]),
        reference=REFERENCE,
        promises=_promises(rows),
        reference_peak=100 * _best(rows, large, REFERENCE)["peak_share"],
        reference_peak_note="a 3x3 convolution may do fewer multiplications than are counted",
        large=large,
        example=example,
        example_peak=100 * _best(rows, large, example)["peak_share"],
        kinds=_kinds(found),
        calls=_calls(found),
    )


def _sizes(rows: list[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["batch_size"] for row in rows))


def _runtimes(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["runtime"] for row in rows))


def _best(rows: list[dict[str, Any]], size: int, model: str) -> dict[str, Any]:
    """Return a network's row in its fastest runtime."""
    here = (row for row in rows if (row["batch_size"], row["model"]) == (size, model))
    return min(here, key=lambda row: row["latency_ms"])


def _table(rows: list[dict[str, Any]], size: int) -> str:
    """Return the ms of a batch size: networks by runtimes."""
    here = [row for row in rows if row["batch_size"] == size]
    runtimes = _runtimes(here)
    cells = {(row["model"], row["runtime"]): row for row in here}
    lines = []
    for model in dict.fromkeys(row["model"] for row in here):
        first = cells[model, runtimes[0]]
        line = [model, f"{first['madds'] / 1e6:,.0f}", f"{first['params'] / 1e6:.2f}"]
        for runtime in runtimes:
            ms = cells[model, runtime]["latency_ms"]
            times = f" ({first['latency_ms'] / ms:.1f})" if runtime != runtimes[0] else ""
            line.append(f"{ms:.1f}{times}")
        lines.append(line)
    return f"## Batch {size}, ms\n\n" + markdown_table(
        ["network", "madds M", "params M", *runtimes], lines
    )


def _int8(rows: list[dict[str, Any]]) -> str:
    """Return the ms in 8 bits, beside the same runtime's in float32."""
    cells = {(row["batch_size"], row["model"], row["runtime"]): row for row in rows}
    runtimes = [each for each in _runtimes(rows) if each.endswith(INT8)]
    if not runtimes:
        return ""
    titles = [each.removesuffix(INT8) for each in runtimes]
    parts = [
        "## In 8 bits, ms",
        filled(
            "Weights and activations in 8 bits, with scales from the images that were timed. In "
            "brackets: how many times as fast as the same runtime in float32. What 8 bits cost in "
            "accuracy is said in [Time and export](deploy.md#in-8-bits): the weights here are "
            "random, and multiply from layer to layer what rounding changes. Answers differ from "
            f"float32's by up to {_worst(rows):.2f} of the largest."
        ),
    ]
    for size in _sizes(rows):
        lines = []
        for model in dict.fromkeys(row["model"] for row in rows):
            line = [model]
            for runtime in runtimes:
                row = cells[size, model, runtime]
                ms, plain = row["latency_ms"], cells[size, model, runtime.removesuffix(INT8)]
                line.append(f"{ms:.1f} ({plain['latency_ms'] / ms:.1f})" if ms else "-")
            lines.append(line)
        parts.append(markdown_table([f"batch {size}", *titles], lines))
    problems = [
        f"- {row['model']}, {row['runtime']}, batch {row['batch_size']}: {row['problem']}"
        for row in rows
        if row["runtime"] in runtimes and row["problem"]
    ]
    if problems:
        parts += ["Not timed:", "\n".join(problems)]
    return "\n\n".join([*parts, _int8_words(rows, runtimes)])


def _worst(rows: list[dict[str, Any]]) -> float:
    """Return the largest difference of an answer in 8 bits, in shares of the largest answer."""
    own = (row["difference"] for row in rows if row["runtime"].endswith(INT8))
    return max((each for each in own if each is not None), default=0.0)


def _int8_words(rows: list[dict[str, Any]], runtimes: list[str]) -> str:
    """Say where 8 bits are slower than float32, and which MobileNets then lose to the reference."""
    cells = {(row["batch_size"], row["model"], row["runtime"]): row["latency_ms"] for row in rows}
    parts = []
    for runtime in runtimes:
        own = {(size, model): ms for (size, model, each), ms in cells.items() if each == runtime}
        timed = {key: ms for key, ms in own.items() if ms}
        plain = runtime.removesuffix(INT8)
        slower = sum(ms > cells[*key, plain] for key, ms in timed.items())
        words = f"{plain} is slower in 8 bits in {slower or 'none'} of {len(timed)} cells"
        behind: dict[str, list[str]] = {}
        for (size, model), ms in timed.items():
            if model.startswith(MOBILE) and ms >= (own[size, REFERENCE] or 0):
                behind.setdefault(model, []).append(str(size))
        if behind:
            names = [f"{model} at batch {' and '.join(each)}" for model, each in behind.items()]
            words += f", and {', '.join(names)} are no faster than {REFERENCE}"
        parts.append(words + ".")
    parts.append("The reasons are in [Time and export](deploy.md#in-8-bits).")
    return filled(" ".join(parts))


def _promises(rows: list[dict[str, Any]]) -> str:
    """Return how many times fewer madds and less time than the reference's each network has."""
    sizes = _sizes(rows)
    runtimes = _runtimes(rows)
    cells = {(row["batch_size"], row["model"], row["runtime"]): row for row in rows}
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        if not model.startswith(MOBILE):
            continue
        own = cells[sizes[0], model, runtimes[0]]
        promised = cells[sizes[0], REFERENCE, runtimes[0]]["madds"] / own["madds"]
        line = [model, f"{promised:.1f}"]
        for size in sizes:
            faster = [
                cells[size, REFERENCE, each]["latency_ms"] / cells[size, model, each]["latency_ms"]
                for each in runtimes
            ]
            line.append(f"{min(faster):.1f} to {max(faster):.1f}")
        lines.append(line)
    titles = [f"times as fast, batch {size}" for size in sizes]
    return markdown_table(["network", "times fewer madds", *titles], lines)


def _kinds(found: dict[str, Any]) -> str:
    layers = [LayerTime(**each) for each in found["layers"]]
    ms, madds = sum(each.ms for each in layers), sum(each.madds for each in layers)
    lines = []
    for kind in dict.fromkeys(each.kind for each in layers):
        own = [each for each in layers if each.kind == kind]
        spent = 100 * sum(each.ms for each in own) / ms
        counted = 100 * sum(each.madds for each in own) / madds
        lines.append((spent, [kind, f"{spent:.0f}", f"{counted:.0f}"]))
    ordered = [line for _, line in sorted(lines, reverse=True)]
    return markdown_table(["kind of layer", "time %", "madds %"], ordered)


def _calls(found: dict[str, Any]) -> str:
    ours: dict[tuple[str, int], float] = {}
    for row in found["rows"]:
        ours.setdefault((row["model"], row["batch_size"]), row["latency_ms"])
    lines = [
        [
            call["model"],
            str(call["batch_size"]),
            f"{call['ms']:.1f}",
            f"{ours[call['model'], call['batch_size']]:.1f}",
            f"{call['published_ms']:.1f}",
        ]
        for call in found["one_call"]
        if call["published_ms"]
    ]
    first = found["rows"][0]["runtime"]
    return markdown_table(
        ["network", "batch", "one call in training mode, ms", f"median, {first}, ms",
         "printed for a Titan X, ms"],
        lines,
    )  # fmt: skip


def digest(found: dict[str, Any]) -> str:
    """Return what tells the figures of one benchmark from those of another."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def draw(found: dict[str, Any], madds: Path, top1: Path, layers: Path) -> None:
    """Draw the pictures; the digest of the figures stands in each file's description."""
    about = f"figures sha256 {digest(found)}"
    pictures.draw_madds(in_float(found["rows"]), madds, about)
    pictures.draw_top1(in_float(found["rows"]), top1, about)
    rows = [LayerTime(**each) for each in found["layers"]]
    pictures.draw_layers(rows, found["layers_of"], layers, about)


def main(words: list[str]) -> None:
    """Write the page and its pictures, from the file that is named or from the last record."""
    if len(words) > 1:
        raise InputError("latency", " ".join(words), "takes one argument, a latency.json")
    check_checkout()
    source = Path(words[0]) if words else RECORD
    try:
        found = read(source)
        text = page(found)
    except ValueError as error:
        raise InputError("latency", source, str(error)) from error
    if source != RECORD:
        RECORD.write_text(source.read_text())
    draw(found, MADDS, TOP1, LAYERS)
    PAGE.write_text(text)
    console.line(f"wrote {PAGE} and its pictures")

"""Markdown tables of a benchmark's figures, and sentences made of them. Writes nothing."""

from typing import Any

from docs.build.pages import filled, markdown_table
from mobilenet_exp.deploy.by_layer import LayerTime

# how int8 runtimes are called, after the one in float32
INT8 = "_int8"
# what the networks of mobile phones are compared with, and those that are
REFERENCE, MOBILE = "resnet18", ("v1", "v2", "v3", "v4")
# by the runtime that launches kernels as a CUDA graph, the one that launches them one by one
ONE_BY_ONE = {"cuda_graphs": "folded", "compiled_cuda_graphs": "compiled"}


def in_float(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of runtimes in float32."""
    return [row for row in rows if not row["runtime"].endswith(INT8)]


def by_cell(rows: list[dict[str, Any]]) -> dict[tuple[int, str, str], dict[str, Any]]:
    """Return the rows by batch size, runtime and network."""
    return {(row["batch_size"], row["runtime"], row["model"]): row for row in rows}


def sizes_of(rows: list[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["batch_size"] for row in rows))


def runtimes_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["runtime"] for row in rows))


def fastest(rows: list[dict[str, Any]], size: int, model: str) -> dict[str, Any]:
    """Return a network's row in its fastest runtime."""
    here = (row for row in rows if (row["batch_size"], row["model"]) == (size, model))
    return min(here, key=lambda row: row["latency_ms"])


def times(rows: list[dict[str, Any]], size: int) -> str:
    """Return the ms of a batch size: networks by runtimes."""
    here = [row for row in rows if row["batch_size"] == size]
    runtimes = runtimes_of(here)
    cells = {(row["model"], row["runtime"]): row for row in here}
    lines = []
    for model in dict.fromkeys(row["model"] for row in here):
        first = cells[model, runtimes[0]]
        line = [model, f"{first['madds'] / 1e6:,.0f}", f"{first['params'] / 1e6:.2f}"]
        for runtime in runtimes:
            ms = cells[model, runtime]["latency_ms"] if (model, runtime) in cells else None
            line.append(_ms(ms, None if runtime == runtimes[0] else first["latency_ms"]))
        lines.append(line)
    return markdown_table(["network", "madds M", "params M", *runtimes], lines)


def _ms(ms: float | None, slower: float | None = None) -> str:
    """Return a time, and in brackets how many times as fast it is; - where there is none."""
    if ms is None:
        return "-"
    times = f" ({slower / ms:.1f})" if slower else ""
    return (f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}") + times


def in_8_bits(rows: list[dict[str, Any]]) -> str:
    """Return the ms in int8, beside the same runtime's in float32."""
    cells = {(row["batch_size"], row["model"], row["runtime"]): row for row in rows}
    runtimes = [each for each in runtimes_of(rows) if each.endswith(INT8)]
    if not runtimes:
        return ""
    titles = [each.removesuffix(INT8) for each in runtimes]
    parts = [
        "## In int8, ms",
        filled(
            "Weights and activations in int8, with scales from the images that were timed. In "
            "brackets: how many times as fast as the same runtime in float32. What int8 costs in "
            "accuracy is in [Time and export](deploy.md#in-int8): the weights here are "
            "random, and multiply from layer to layer what rounding changes. Answers differ from "
            f"float32's by up to {_worst(rows):.2f} of the largest answer."
        ),
    ]
    for size in sizes_of(rows):
        lines = []
        for model in dict.fromkeys(row["model"] for row in rows):
            line = [model]
            for runtime in runtimes:
                row = cells[size, model, runtime]
                ms, plain = row["latency_ms"], cells[size, model, runtime.removesuffix(INT8)]
                line.append(_ms(ms, plain["latency_ms"]))
            lines.append(line)
        parts.append(markdown_table([f"batch {size}", *titles], lines))
    parts += not_timed([row for row in rows if row["runtime"] in runtimes])
    return "\n\n".join([*parts, _int8_words(rows, runtimes)])


def not_timed(rows: list[dict[str, Any]]) -> list[str]:
    """Return a list of the cells without figures and why they have none, under its title."""
    problems = [
        f"- {row['model']}, {row['runtime']}, batch {row['batch_size']}: {row['problem']}"
        for row in rows
        if row["problem"]
    ]
    return ["Not timed:", "\n".join(problems)] if problems else []


def _worst(rows: list[dict[str, Any]]) -> float:
    """Return the largest difference of an int8 answer, as a fraction of the largest answer."""
    timed = [row for row in rows if row["runtime"].endswith(INT8) and row["latency_ms"]]
    return max((row["difference"] for row in timed if row["difference"] is not None), default=0.0)


def _int8_words(rows: list[dict[str, Any]], runtimes: list[str]) -> str:
    """Say where int8 is slower than float32, and which MobileNets then lose to the reference."""
    cells = {(row["batch_size"], row["model"], row["runtime"]): row["latency_ms"] for row in rows}
    parts = []
    for runtime in runtimes:
        own = {(size, model): ms for (size, model, each), ms in cells.items() if each == runtime}
        timed = {key: ms for key, ms in own.items() if ms}
        plain = runtime.removesuffix(INT8)
        slower = sum(ms > cells[*key, plain] for key, ms in timed.items())
        words = f"{plain} is slower in int8 in {slower or 'none'} of {len(timed)} cells"
        behind: dict[str, list[str]] = {}
        for (size, model), ms in timed.items():
            reference = own[size, REFERENCE]
            if model.startswith(MOBILE) and reference and ms >= reference:
                behind.setdefault(model, []).append(str(size))
        if behind:
            names = [f"{model} at batch {' and '.join(each)}" for model, each in behind.items()]
            words += f"; no faster than {REFERENCE} in int8: {', '.join(names)}"
        parts.append(words + ".")
    parts.append("The reasons are in [Time and export](deploy.md#in-int8).")
    return filled(" ".join(parts))


def promises(rows: list[dict[str, Any]]) -> str:
    """Return how many times fewer madds and less time than the reference's each network has."""
    sizes = sizes_of(rows)
    runtimes = runtimes_of(rows)
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


def kinds(found: dict[str, Any]) -> str:
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


def calls(found: dict[str, Any]) -> str:
    """Return what the old repository's method gives, beside the medians and what it printed."""
    first = found["rows"][0]["runtime"]
    ours = {
        (row["model"], row["batch_size"]): row["latency_ms"]
        for row in found["rows"]
        if row["runtime"] == first
    }
    lines = [
        [
            call["model"],
            str(call["batch_size"]),
            _ms(call["ms"]),
            _ms(ours.get((call["model"], call["batch_size"]))),
            f"{call['published_ms']:.1f}",
        ]
        for call in found["one_call"]
        if call["published_ms"]
    ]
    return markdown_table(
        ["network", "batch", "one call in training mode, ms", f"median, {first}, ms",
         "printed for a Titan X, ms"],
        lines,
    )  # fmt: skip


def gpu_words(found: dict[str, Any]) -> str:
    """Say what launching kernels together gains, and which MobileNets lose to the reference."""
    cells = by_cell([row for row in found["rows"] if row["latency_ms"]])
    size = min(size for size, _, _ in cells)
    gains = [
        cells[size, ONE_BY_ONE[runtime], model]["latency_ms"] / row["latency_ms"]
        for (of_size, runtime, model), row in cells.items()
        if of_size == size and (size, ONE_BY_ONE.get(runtime), model) in cells
    ]
    words = []
    if gains:
        ends = dict.fromkeys(f"{each:.1f}" for each in (min(gains), max(gains)))
        words.append(
            f"At batch {size}, the same kernels take {' to '.join(ends)} times as long launched "
            "one by one as in a graph."
        )
    if behind := no_faster(found["rows"]):
        words.append(f"No faster than {REFERENCE}: {'; '.join(behind)}.")
    return filled(" ".join(words))


def no_faster(rows: list[dict[str, Any]]) -> list[str]:
    """Name the MobileNets that take as long as the reference or longer, and where they do."""
    cells = by_cell([row for row in rows if row["latency_ms"]])
    behind: dict[str, list[str]] = {}
    for (size, runtime, model), row in cells.items():
        reference = cells.get((size, runtime, REFERENCE))
        if reference and model.startswith(MOBILE) and row["latency_ms"] >= reference["latency_ms"]:
            behind.setdefault(f"{model} at batch {size}", []).append(runtime)
    return [f"{name} in {', '.join(runtimes)}" for name, runtimes in behind.items()]

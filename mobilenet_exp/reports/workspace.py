"""`python -m mobilenet_exp workspace`: W&B's panels and a report for the project, from code.

Without a key or a network it writes what it would send, and sends nothing.
"""

import json
import os
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces.reports.v2 import (
    BarPlot,
    Config,
    LinePlot,
    MediaBrowser,
    Metric,
    ParallelCoordinatesPlot,
    ParallelCoordinatesPlotColumn,
    ParameterImportancePlot,
    RunComparer,
    ScatterPlot,
    SummaryMetric,
    WeavePanelSummaryTable,
)

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import RunError, first_line
from mobilenet_exp.core.files import write_file
from mobilenet_exp.core.text import plural
from mobilenet_exp.papers.rows import paper_rows
from mobilenet_exp.reports.options import Parser
from mobilenet_exp.tracking.environment import DEFAULT_PROJECT, read_surroundings, resolve_mode
from mobilenet_exp.tracking.wandb_rows import Figures, default_entity, log_figures

NAME = "Beside the papers"
SPEC = "wandb_workspace.json"
# what the table of runs shows first: the README's columns
TABLE = (
    "best/top1", "paper/top1", "delta/top1", "model/madds_m", "published/madds_m",
    "paper/madds_m", "delta/madds_m", "model/params_m", "published/params_m", "paper/params_m",
    "delta/params_m", "best/epoch",
)  # fmt: skip
CURVES = (
    "train/loss", "train/lr", "train/grad_norm", "speed/images_per_s", "speed/waiting_percent",
    "system/peak_memory_mb",
)  # fmt: skip
PICTURES = ("val/errors_sheet", "eval/errors_sheet", "train/first_batch")
TABLES = ("val/errors", "val/per_class", "paper/table", "model/blocks", "model/layers")
TOP1 = SummaryMetric("best/top1")
# the width of W&B's grid, in which a report's panels are laid
GRID = 24


def main(args: list[str]) -> None:
    """Save the workspace and the report, or write what they would be."""
    parser = Parser(
        prog="python -m mobilenet_exp workspace",
        description="Build the project's workspace and report in Weights & Biases. Without a key "
        "or a network, write them to a file instead.",
    )
    parser.add_argument("--project", help="(default: WANDB_PROJECT, else mobilenet_exp)")
    parser.add_argument("--entity", help="account or team (default: WANDB_ENTITY, else the key's)")
    parser.add_argument("--papers", action="store_true", help="log the papers' rows as runs, too")
    parser.add_argument("--out", default=SPEC, help=f"file for what is built (default: {SPEC})")
    arguments = parser.parse_args(args)
    surroundings = read_surroundings()
    project = arguments.project or surroundings.project or DEFAULT_PROJECT
    entity = arguments.entity or os.environ.get("WANDB_ENTITY") or ""
    mode, reason = resolve_mode("auto")
    if mode != "online":
        workspace, report = build_workspace(entity, project), build_report(entity, project)
        write_file(Path(arguments.out), spec_of(workspace, report))
        panels = sum(len(section.panels) for section in workspace.sections)
        about = f"{plural(len(workspace.sections), 'section')}, {plural(panels, 'panel')}, a report"
        why = reason or f"W&B is {mode}"
        console.line(f"{arguments.out}: {about} for the project {project}; nothing sent: {why}")
        return
    try:
        _save(entity or default_entity(), project, papers=arguments.papers)
    except Exception as error:
        # W&B's, requests' and the server's own
        raise RunError(f"W&B did not take the workspace: {first_line(error)}") from error


def _save(entity: str, project: str, *, papers: bool) -> None:
    """Send the workspace, the report and, with `--papers`, the papers' rows."""
    if papers:
        rows = published()
        log_figures(rows, project=project, entity=entity, job_type="paper")
        console.line(f"{plural(len(rows), 'row')} of papers logged as runs")
    workspace, report = build_workspace(entity, project), build_report(entity, project)
    # the report makes the project where there is none
    report.save()
    workspace.save()
    console.line(f"workspace: {workspace.url}")
    console.line(f"report: {report.url}")


def published() -> list[Figures]:
    """Return the papers' rows as runs, with the keys by which panels find ours."""
    found = []
    for row in paper_rows():
        if row.source not in ("paper", "paper_appendix") or row.top1 is None or row.is_quantised:
            continue
        generation = row.model[:2].upper()
        net = f"{row.model} {row.width_mult:g} at {row.resolution} px"
        options = "".join(f"-{key}-{value}" for key, value in row.options.items())
        key = f"{row.source}-{row.model}-w{row.width_mult:g}-r{row.resolution}{options}"
        summary = {
            "best/top1": row.top1,
            "model/madds_m": row.madds / 1e6,
            "model/params_m": row.params / 1e6,
            "paper/source": f"{row.source}: {row.citation}",
        }
        config = {"model": {"name": row.model, "width_mult": row.width_mult}}
        found.append(Figures(key, f"paper: {net}", f"papers {generation}", config, summary))
    return found


def sections() -> list[tuple[str, list[Any]]]:
    """Return the panels by section."""
    return [
        ("Beside the paper", _beside_paper()),
        ("Width sweep", _width_sweep()),
        ("Learning-rate sweep", _learning_rate_sweep()),
        ("Averaged weights against raw", _averaged_against_raw()),
        ("Training and speed", [_line(key, key) for key in CURVES]),
        ("What went wrong", _mistakes()),
    ]


def _line(title: str, *keys: str, **options: Any) -> LinePlot:
    """Return curves against the epoch."""
    return LinePlot(title=title, x=Metric("epoch"), y=[Metric(key) for key in keys], **options)


def _beside_paper() -> list[Any]:
    return [
        ScatterPlot(
            title="top-1 over madds, with the front of all shown",
            x=SummaryMetric("model/madds_m"),
            y=TOP1,
            log_x=True,
            running_ymax=True,
        ),
        ScatterPlot(
            title="the same nets as their papers print them, on ImageNet",
            x=SummaryMetric("paper/madds_m"),
            y=SummaryMetric("paper/top1"),
            log_x=True,
            running_ymax=True,
        ),
        BarPlot(
            title="gap to the paper, points of top-1 (runs that repeat its experiment)",
            metrics=[SummaryMetric("delta/top1")],
        ),
        BarPlot(
            title="gap of counted madds to the printed ones, millions",
            metrics=[SummaryMetric("delta/madds_m")],
        ),
    ]


def _width_sweep() -> list[Any]:
    width = Config("model.width_mult")
    by_width = {"groupby": width, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return [
        ScatterPlot(title="top-1 over width", x=width, y=TOP1),
        BarPlot(title="top-1 by width, mean and range", metrics=[TOP1], **by_width),
        _line("validation top-1 by width", "val/top1", **by_width),
    ]


def _learning_rate_sweep() -> list[Any]:
    rate = Config("optimizer.lr")
    columns = [
        ParallelCoordinatesPlotColumn(rate, log=True),
        ParallelCoordinatesPlotColumn(Config("optimizer.weight_decay")),
        ParallelCoordinatesPlotColumn(Config("train.epochs")),
        ParallelCoordinatesPlotColumn(TOP1),
    ]
    return [
        ScatterPlot(title="top-1 over learning rate", x=rate, y=TOP1, log_x=True),
        ParallelCoordinatesPlot(columns=columns),
        ParameterImportancePlot(with_respect_to="best/top1"),
    ]


def _averaged_against_raw() -> list[Any]:
    return [
        _line(f"{kind}, raw and averaged (EMA)", f"val/{key}", f"val_ema/{key}")
        for kind, key in (("top-1", "top1"), ("loss", "loss"))
    ]


def _mistakes() -> list[Any]:
    return [
        MediaBrowser(title="worst images and first batches", media_keys=list(PICTURES)),
        *(WeavePanelSummaryTable(table_name=name) for name in TABLES),
        RunComparer(diff_only="split"),
    ]


def build_workspace(entity: str, project: str) -> Any:
    """Return the project's workspace."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=number < 2)
            for number, (name, panels) in enumerate(sections())
        ],
        settings=workspaces.WorkspaceSettings(x_axis="epoch"),
        runset_settings=workspaces.RunsetSettings(
            order=[workspaces.Ordering(workspaces.Summary("best/top1"), ascending=False)],
            pinned_columns=[f"summary:{key}" for key in TABLE],
        ),
    )


def build_report(entity: str, project: str) -> Any:
    """Return a report with the same panels, and text that explains them."""
    blocks: list[Any] = [
        reports.TableOfContents(),
        reports.P(
            "model/* is the network that ran, published/* the one of the paper's row as it is "
            "counted here, paper/* what the row prints. delta/madds_m and delta/params_m are "
            "published minus paper; delta/top1 is best/top1 minus paper/top1, and exists only for "
            "runs that repeat the row's own experiment on ImageNet."
        ),
    ]
    for name, panels in sections():
        # of the report's own project
        runs = reports.Runset(
            order=[reports.OrderBy(SummaryMetric("best/top1"), ascending=False)],
        )
        _lay_out(panels)
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runs], panels=panels)]
    return reports.Report(
        entity=entity,
        project=project,
        title=f"MobileNets: {NAME.lower()}",
        description="Every run beside the row of its paper",
        blocks=blocks,
        width="fluid",
    )


def _lay_out(panels: list[Any]) -> None:
    """Lay panels side by side, two in a row."""
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        panel.layout = reports.Layout(x=column * GRID // 2, y=row * 8, w=GRID // 2, h=8)


def spec_of(workspace: Any, report: Any) -> str:
    """Return both as W&B's own JSON, as it would be sent."""
    specs = {}
    for name, part in (("workspace", workspace), ("report", report)):
        text = part._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
        specs[name] = json.loads(text)
    return json.dumps(specs, indent=1) + "\n"

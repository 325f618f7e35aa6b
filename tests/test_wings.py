"""A wing imports from the wings below it, and each third party has its door."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from programs import ROOT

PACKAGE = ROOT / "mobilenet_exp"

DESIGN = (ROOT / "docs" / "design.md").read_text()
# of each wing in the table of docs/design.md: its modules, and what it may import besides them
ROWS = {
    cells[1].strip(" `/"): [cells[3].replace(",", " ").replace("(and its CSV)", "").split(),
                            cells[4].replace(",", " ").split()]
    for cells in (line.split("|") for line in DESIGN.splitlines() if line.startswith("| `"))
    if len(cells) == 6
}  # fmt: skip
MAY_IMPORT = {wing: may_import for wing, (_, may_import) in ROWS.items()}

COMMAND = {"command.errors", "command.sweeping", "command.program"}
DOORS = {
    "hydra": {"cli", *COMMAND},
    "omegaconf": {"config.convert", *COMMAND},
    "wandb": {"tracking.tracker", "tracking.environment", "tracking.wandb_rows"},
    "timm": {
        "datasets.imagenet", "data.augment", "data.mixing", "deploy.nets", "models.peers",
        "training.optim", "training.ema", "training.losses", "weights.pretrained",
    },
    "torchvision": {
        "data.resizing", "data.augment", "datasets.images", "datasets.torchvision_sets",
        "datasets.sets", "models.network", "training.reporting",
        "deploy.nets", "weights.pretrained",
    },
    "nvidia": {"datasets.codec"},
    "filelock": {"machine.lock", "datasets.listing", "datasets.packed.remote"},
    "fsspec": {"datasets.packed.remote"},
    "safetensors": {"weights.files", "datasets.listing"},
    "matplotlib": {
        "deploy.pictures", "evaluation.mistakes", "tracking.pictures",
    },
    "sklearn": {"datasets.sets"},
    "plotly": {"reports.page"},
    "wandb_workspaces": {"reports.workspace"},
    "rich": {"core.console"},
    "yaml": {"command.errors", "reports.reading"},
}  # fmt: skip
# answer before torch is loaded: composing, completing, explaining, printing
WITHOUT_TORCH = {"core", "config", "tracking", "command", "cli", "__main__"}
WITHOUT_TORCH_MODULES = {
    "machine.preemption", "machine.lock", "machine.provenance", "papers.rows", "training.schedule",
}  # fmt: skip


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path for path in PACKAGE.rglob("*.py") if _name(path)}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def _imports(name: str) -> set[str]:
    """Return what a module imports, whole names; types alone are no imports."""
    found = set()
    guarded = {
        inner
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(TREES[name]):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _ours(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    names = {each.removeprefix("mobilenet_exp.") for each in _imports(name)}
    return {each for each in names if each in SOURCES}


def test_the_listing_is_the_table():
    wings = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    roof = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert wings | roof == set(MAY_IMPORT)
    for wing in wings:
        modules = {name.partition(".")[2] for name in SOURCES if name.startswith(f"{wing}.")}
        assert set(ROWS[wing][0]) == modules - {"packed"}, wing


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_wing_imports_from_below(module):
    wing = module.partition(".")[0]
    allowed = (*MAY_IMPORT[wing], wing)
    for name in _ours(module):
        if name in MAY_IMPORT and any(each.startswith(f"{name}.") for each in allowed):
            # `from mobilenet_exp.datasets import imagenet` names the wing as well
            continue
        is_allowed = any(name == each or name.startswith(f"{each}.") for each in allowed)
        assert is_allowed, f"{module} imports {name}"


def test_no_circle_within_a_wing():
    graph = {name: _ours(name) - {name.partition(".")[0]} - {name} for name in SOURCES}
    for wing in (name for name in MAY_IMPORT if name in SOURCES):
        # a wing's own __init__ hands on names of its modules
        graph[wing] = set()
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_third_parties_come_through_their_door(module):
    roots = {name.partition(".")[0] for name in _imports(module)}
    for library, doors in DOORS.items():
        assert library not in roots or module in doors, f"{module} imports {library}"
    if module.partition(".")[0] in WITHOUT_TORCH or module in WITHOUT_TORCH_MODULES:
        assert "torch" not in roots


@pytest.mark.parametrize("module", [name for name in SOURCES if SOURCES[name].stem == "__init__"])
def test_an_init_hands_names_on_and_defines_nothing(module):
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in TREES[module].body)


def test_only_the_roof_imports_reports():
    for name in SOURCES:
        if not name.startswith(("reports", "__main__")):
            assert not any(each.startswith("reports") for each in _ours(name)), name

"""Imports point down only, and each third party has its door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mobilenet_exp"

# A module imports from lower floors only; modules of one floor do not know each other.
FLOORS = (
    ("errors", "paper", "sweep", "schema", "preprocessing", "images", "metrics", "stopping"),
    ("registry", "rules", "imagenet", "hardware", "run_folder", "provenance", "console", "smoke"),
    ("config", "distributed", "synced_bn", "averaging", "mixing", "order", "transforms"),
    ("explain", "schedule", "image_sets", "models.layers"),
    ("models.universal", "profiling"),
    ("models.rows",),
    ("models.network",),
    ("models.v1", "models.v2", "models.v3", "models.v3_edgetpu", "models.v4"),
    ("models.seed_v3",),
    ("models", "models.dialect"),
    ("weights.names", "weights.files", "weights.published"),
    ("weights.layouts",),
    ("weights.export", "weights.old_call"),
    ("weights",),
    ("data", "optim", "checkpoint", "tracking", "comparison", "benchmark", "reports", "networks"),
    ("subject",),
    ("teacher", "photos"),
    ("engine",),
    ("session", "evaluation"),
    ("epochs",),
    ("saving",),
    ("record",),
    ("training",),
    ("run", "zoo", "rmsprop_page", "cli"),
    ("train", "eval", "bench"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

DOORS = {
    "hydra": {"cli"},
    "omegaconf": {"schema", "config", "cli"},
    "wandb": {"tracking"},
    "timm": {"optim", "imagenet", "transforms", "mixing", "averaging", "weights.published"},
    "torchvision": {
        "data", "transforms", "image_sets", "benchmark", "models.network", "weights.published",
    },
    "filelock": {"run_folder"},
    "safetensors": {"weights.files"},
    "matplotlib": {"zoo", "rmsprop_page"},
    "sklearn": {"image_sets"},
    "rich": {"console"},
}  # fmt: skip
# answer before torch is loaded: composing, completing, explaining, printing
WITHOUT_TORCH = {
    "errors", "paper", "console", "smoke", "sweep", "schema", "rules", "registry", "config",
    "explain", "schedule", "tracking", "provenance", "reports", "stopping", "run_folder", "cli",
    "train", "eval", "bench",
}  # fmt: skip


def _sources() -> dict[str, Path]:
    entries = {name: ROOT / f"{name}.py" for name in FLOORS[-1]}
    package = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            package[".".join(parts)] = path
    return entries | package


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


SOURCES = _sources()


def test_every_module_has_a_floor():
    assert set(SOURCES) == set(FLOOR)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module):
    ours = {name.removeprefix(f"{PACKAGE}.") for name in _imports(SOURCES[module])}
    for name in ours & set(FLOOR):
        # `from mobilenet_exp.models import v1` names the package itself as well
        assert FLOOR[name] < FLOOR[module] or name == module, f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_third_parties_come_through_their_door(module):
    roots = {name.partition(".")[0] for name in _imports(SOURCES[module])}
    for library, doors in DOORS.items():
        assert library not in roots or module in doors, f"{module} imports {library}"
    if module in WITHOUT_TORCH:
        assert "torch" not in roots


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_modules_stay_readable(module):
    lines = SOURCES[module].read_text().splitlines()
    # about 250
    assert len(lines) <= 260, f"{module} has {len(lines)} lines"

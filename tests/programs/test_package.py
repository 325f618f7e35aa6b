"""The package as it is installed: all wings, its configuration, its commands."""

import shutil
import subprocess
import sys
import tomllib

from programs import ROOT

from mobilenet_exp import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_wing_is_packaged():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = (path.parent for path in ROOT.glob("mobilenet_exp/*/**/__init__.py"))
    wings = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == wings | {"mobilenet_exp", "mobilenet_exp.conf"}


def test_commands_lead_to_the_programs():
    for name, target in PROJECT["project"]["scripts"].items():
        module, _, function = target.partition(":")
        assert module == "mobilenet_exp.cli"
        assert callable(getattr(cli, function)), name


def test_requirements_name_each_package_once_and_all_dependencies():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [line.partition("==")[0].lower() for line in lines if "==" in line]
    assert len(names) == len(set(names))
    extras = PROJECT["project"]["optional-dependencies"]
    for group in (PROJECT["project"]["dependencies"], *extras.values()):
        for line in group:
            assert line.partition(">=")[0].lower() in names, line


def test_an_installed_package_finds_its_configuration_from_anywhere(tmp_path):
    """Laid out as the wheel lays it out: the YAML files inside the package."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        folder = PROJECT["tool"]["setuptools"]["package-dir"].get(package)
        folder = folder or package.replace(".", "/")
        suffixes = ("*.py", "*.csv", "**/*.yaml")
        for path in (p for suffix in suffixes for p in (ROOT / folder).glob(suffix)):
            target = site / package.replace(".", "/") / path.relative_to(ROOT / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    code = (
        "import mobilenet_exp, sys; from mobilenet_exp import compose, paper_row, cli;"
        "assert str(cli.CONF).startswith(sys.argv[1]), cli.CONF;"
        "print(compose('model=v2', 'experiment=width_sweep').data.name, paper_row('v2').top1)"
    )
    command = [sys.executable, "-c", code, str(site)]
    done = subprocess.run(
        command, cwd=elsewhere, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.stdout == "digits 72.0\n", done.stderr


def test_the_type_checker_passes_over_nothing():
    """Widening the setting means to change this test, too."""
    mypy = PROJECT["tool"]["mypy"]
    assert mypy["packages"] == ["mobilenet_exp"]
    (skipped,) = mypy["overrides"]
    assert set(skipped) == {"module", "follow_imports", "ignore_missing_imports"}
    assert not any("mobilenet_exp" in module for module in skipped["module"])
    assert not {"ignore_errors", "disable_error_code", "exclude"} & set(mypy)
    ignores = sum(
        path.read_text().count("type: ignore") for path in (ROOT / "mobilenet_exp").rglob("*.py")
    )
    assert ignores == 0


AVERAGE = (
    "error: RUN=null: must be a run's folder, and how many checkpoints to average, if not all\n"
)


def test_other_commands_have_a_door_with_help():
    def door(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mobilenet_exp", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert "average RUN" in door("--help").stdout
    assert "RUN [COUNT]" in door("average", "--help").stdout
    for words, line in (
        (
            ("zo",),
            "error: zo: not a command; "
            "there are: average, photos, runs, page, workspace, "
            "pack, export\n",
        ),
        (("average",), AVERAGE),
    ):
        done = door(*words)
        assert (done.returncode, done.stderr) == (2, line)

"""One's own model, data set, optimizer and schedule, by the words of docs/contributing.md."""

import json
import re

import pytest
from programs import ROOT, run

from mobilenet_exp import compose, train
from mobilenet_exp.core.errors import InputError

TEXT = (ROOT / "docs" / "contributing.md").read_text()
SMALL = ("run.device=cpu", "run.wandb=disabled")


@pytest.fixture
def folder(tmp_path):
    """The files that the page tells to write, from its own blocks."""
    own, _, _ = TEXT.partition("## Add a model to this repository")
    for name, content in re.findall(
        r"`([\w/]+\.(?:py|yaml))`[^`]*?\n\n```\w+\n(.*?)```", own, re.S
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_the_page_s_words_train_resume_and_evaluate(folder):
    assert (folder / "my_nets.py").exists()
    assert len(list(folder.rglob("*.yaml"))) == 6
    words = ("--config-dir", "my_conf", "experiment=mine", *SMALL)
    done = run(folder, "train.py", *words)
    assert done.returncode == 0, done.stderr
    assert "tiny 1 on two_kinds" in done.stdout
    assert "no row published for tiny" in done.stdout
    (results,) = folder.glob("runs/*/results.json")
    found = json.loads(results.read_text())
    assert (found["epochs"], found["num_classes"], found["data"]) == (2, 2, "two_kinds")

    again = run(folder, "train.py", *words)
    assert "is already finished" in again.stdout
    best = results.parent / "checkpoints" / "best.pt"
    scored = run(folder, "eval.py", f"checkpoint={best}", "run.imports=[my_nets]", *SMALL)
    assert scored.returncode == 0, scored.stderr
    assert "two_kinds" in scored.stdout
    # no checkpoint runs code: the module is named by the person
    refused = run(folder, "eval.py", f"checkpoint={best}", *SMALL)
    assert refused.returncode == 2
    assert "its run had run.imports=[my_nets]; give it here too" in refused.stderr
    other = run(
        folder, "train.py", "--config-dir", "my_conf", "model=tiny", "run.imports=[my_nets]",
        "data=fake", "data.resolution=64", "train.epochs=1", *SMALL,
    )  # fmt: skip
    assert other.returncode == 0, other.stderr


def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_nets.py").write_text("1 / 0\n")
    for name, reason in (
        ("no_such_nets", "ModuleNotFoundError: No module named 'no_such_nets'"),
        ("broken_nets", "ZeroDivisionError: division by zero"),
    ):
        config = compose(f"run.imports=[{name}]", *SMALL)
        with pytest.raises(InputError, match=f"run.imports={name}: cannot be imported: {reason}"):
            train(config)
    assert not (tmp_path / "runs").exists()

"""One's own model, data set, optimizer and schedule, by the words of docs/contributing.md."""

import json
import re

import pytest
import timm
from hard_run import metrics
from programs import ROOT, run
from states import crash_before_saving
from torch import nn

from mobilenet_exp import compose, evaluate, profile_model, train
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy.export import export
from mobilenet_exp.models import MODELS
from mobilenet_exp.weights.load import load_run

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
    assert done.stdout.count("  worst_loss ") == 2
    rows = metrics(results.parent / "metrics.jsonl")
    assert all(row["val/worst_loss"] > row["val/loss"] for row in rows)

    again = run(folder, "train.py", *words)
    assert "is already finished" in again.stdout
    best = results.parent / "checkpoints" / "best.pt"
    own = ("run.imports=[my_nets]", "run.metrics=[worst_loss]")
    scored = run(folder, "eval.py", f"checkpoint={best}", *own, *SMALL)
    assert scored.returncode == 0, scored.stderr
    assert "worst_loss" in scored.stdout
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


@pytest.fixture
def plain():
    """A module with nothing of ours, under `model.name=plain` for this test alone."""

    @MODELS.register("plain")
    def build(num_classes: int, *, wide: int = 8) -> nn.Module:
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes)]
        return nn.Sequential(nn.Conv2d(3, wide, 3, stride=2), nn.ReLU(), *pooled)

    yield
    del MODELS._builders["plain"]


SMALL_DATA = ("data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16")


def test_any_module_trains_resumes_and_is_scored(plain, tmp_path):
    words = ("model.name=plain", *SMALL_DATA, *SMALL, f"run.root={tmp_path}", "train.epochs=2")
    with crash_before_saving(2):
        train(compose(*words))
    results = train(compose(*words))
    assert results["epochs"] == 2
    # 15 x 15 places of 8 filters of 3 x 3 x 3, and 8 x 10
    assert (results["madds"], results["params"]) == (15 * 15 * 8 * 27 + 80, 8 * 28 + 90)
    best = tmp_path / results["name"] / "checkpoints" / "best.pt"
    assert load_run(str(best)).variant is None
    scored = evaluate(compose(f"checkpoint={best}", *SMALL, program="eval"))
    assert scored["top1"] == results["top1"]
    with pytest.raises(InputError, match="weights=.*: is read into this repository's own networks"):
        train(compose(*words, f"weights={best}"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("model.width_mult=0.5",), "model.width_mult=0.5: is not an option of plain"),
        (("model.dropout=0.5",), "model.dropout=0.5: is not an option of plain"),
        (("model.stochastic_depth=0.1",), "model.stochastic_depth=0.1: plain has no shortcuts"),
        (("model.args.deep=2",), "model.args.deep=2: not an option of plain; allowed: wide"),
        (
            ("train.trainable=classifier", "run.smoke=true"),
            "train.trainable=classifier: needs a network with a `classifier`",
        ),
    ],
)
def test_what_a_module_does_not_take_is_refused(plain, tmp_path, words, problem):
    with pytest.raises(InputError) as caught:
        train(compose("model.name=plain", *SMALL_DATA, *SMALL, f"run.root={tmp_path}", *words))
    assert str(caught.value).startswith(problem)


def test_a_peer_is_trained_counted_scored_and_exported_like_ours(tmp_path):
    words = ("model=timm", "model.args.arch=lcnet_035", *SMALL_DATA, "train.epochs=1")
    results = train(compose(*words, *SMALL, f"run.root={tmp_path}"))
    assert results["name"].startswith("lcnet_035-w1-r32-fake-")
    assert results["model"] == "lcnet_035"
    net = timm.create_model("lcnet_035", num_classes=10)
    assert results["params"] == sum(each.numel() for each in net.parameters())
    assert results["madds"] == profile_model(net, 32).madds
    best = tmp_path / results["name"] / "checkpoints" / "best.pt"
    scored = evaluate(compose(f"checkpoint={best}", *SMALL, program="eval"))
    assert (scored["top1"], scored["model"]) == (results["top1"], "lcnet_035")
    file = tmp_path / "peer.pt2"
    export(compose(f"checkpoint={best}", "format=torch_export", f"out={file}", program="export"))
    exported = evaluate(
        compose(f"weights={file}", *SMALL_DATA[:3], *SMALL, f"run.root={tmp_path}", program="eval")
    )
    assert exported["top1"] == results["top1"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("model.args.arch=nonet",), "model.args.arch=nonet: not a network of timm"),
        (("model.args.arch=lcnet_035", "model.width_mult=2"), "model.width_mult=2.0: is not an"),
    ],
)
def test_a_peer_that_is_not_there_is_refused(tmp_path, words, problem):
    with pytest.raises(InputError) as caught:
        train(compose("model=timm", *words, *SMALL_DATA, *SMALL, f"run.root={tmp_path}"))
    assert str(caught.value).startswith(problem)
    assert not list(tmp_path.iterdir())

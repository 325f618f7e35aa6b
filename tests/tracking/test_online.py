"""The real client against a stand-in of W&B's server: a run online, resumed, cut off, synced."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hard_run import WORDS, finish, wait_for
from hard_run import metrics as epochs_in
from programs import run, start
from wandb_server import KEY, WandbServer

QUICK = (
    "model.name=tiny", "run.imports=[tiny_net]", "data=fake", "data.resolution=32",
    "data.batch_size=16", "data.args={num_images: 32, num_classes: 4}", "run.device=cpu",
    "run.workers=0", "train.precise_bn_batches=0",
)  # fmt: skip
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def server():
    with WandbServer() as standing_in:
        yield standing_in


def _epochs(stored) -> list[int]:
    # a row without a loss is the confusion matrix's
    return [row["epoch"] for row in stored.history if "train/loss" in row]


def _stop_after_an_epoch(folder, *words, env, sent=signal.SIGINT):
    """Start a run, stop it once it has saved, and wait for its end."""
    process = start(folder, "train.py", *words, f"run.root={folder}/runs", env=env, **PIPES)
    wait_for(lambda: list(folder.glob("runs/*/checkpoints/previous.pt")), process)
    process.send_signal(sent)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 75, out + errors


def test_a_run_online_and_its_evaluation(tmp_path, server):
    done = run(
        tmp_path, "train.py", *QUICK, "train.epochs=2", "optimizer.lr=0.02", "run.wandb=online",
        **server.environment, WANDB_TAGS="mine", WANDB_ENTITY="me",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (stored,) = server.runs.values()
    assert f"W&B: {server.url}/me/mobilenet_exp/runs/{stored.name}" in done.stdout
    # W&B's own lines, and the key, are nowhere
    assert "wandb:" not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert _epochs(stored) == [1, 2]
    assert stored.exit_codes == [0]
    shown = {name.rpartition("/")[0].removeprefix("media/") for name in stored.files}
    assert shown >= {"table/model", "table/val", "table/paper", "images/val", "images/train"}
    tables = {"model/blocks", "model/layers", "paper/table", "val/errors", "val/per_class"}
    tables |= {"val/confusion_table"}
    assert tables | {"train/first_batch", "val/errors_sheet"} <= set(stored.summary)
    # its name says what the command varies
    assert stored.values["displayName"].startswith("tiny-w1-r32-fake-sgd-s0 batch_size=16 ")
    assert stored.values["displayName"].endswith(" epochs=2 lr=0.02")
    assert stored.values["tags"][0] == "tiny"
    assert stored.values["tags"][-1] == "mine"
    assert stored.values["entity"] == "me"
    # the values that ran, not what was left open
    config = {key: entry["value"] for key, entry in stored.config.items()}
    assert config["model"]["num_classes"] == 4
    assert (config["run"]["device"], config["run"]["workers"]) == ("cpu", 0)
    assert config["run"]["precision"] == "float32"
    assert stored.summary["best/epoch"] in (1, 2)
    assert stored.summary["model/params"] > 0

    best = f"runs/{stored.name}/checkpoints/best.pt"
    scored = run(
        tmp_path, "eval.py", f"checkpoint={best}", "run.imports=[tiny_net]", "run.wandb=online",
        **server.environment,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    evaluation = server.runs[next(name for name in server.runs if name != stored.name)]
    words = evaluation.values["displayName"]
    assert words.startswith("eval tiny-w1-r32-fake best.pt epoch ")
    assert (evaluation.values["groupName"], evaluation.values["jobType"]) == (stored.name, "eval")
    assert "eval/top1" in evaluation.summary
    # a table is an artifact, whose type the client asks for; the run does without an answer
    assert set(server.unknown) <= {"OrganizationCoreWeaveOrganizationID", "ArtifactType"}
    print(*(" ".join(call) for call in server.record), sep="\n")


def test_a_run_that_is_stopped_reads_as_stopped_and_resumes_as_the_same_run(tmp_path, server):
    words = (*WORDS[:-1], "run.workers=0", "train.epochs=400", "run.wandb=online")
    _stop_after_an_epoch(tmp_path, *words, env=server.environment)
    (stored,) = server.runs.values()
    assert stored.exit_codes == [255]
    assert stored.summary["run/stopped"].startswith("stopped by SIGINT after epoch")
    first = _epochs(stored)
    env = server.environment | {"WANDB_RUN_GROUP": ""}
    _stop_after_an_epoch_more(tmp_path, words, env, len(first))
    assert len(server.runs) == 1
    epochs = _epochs(stored)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > len(first)
    assert stored.preempting


def _stop_after_an_epoch_more(folder, words, env, done):
    process = start(folder, "train.py", *words, f"run.root={folder}/runs", env=env, **PIPES)
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    wait_for(lambda: len(epochs_in(metrics)) > done + 1, process)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 75, out + errors


def test_a_server_that_goes_and_comes_back_loses_nothing(tmp_path, server):
    words = (*WORDS[:-1], "run.workers=0", "train.epochs=12", "run.wandb=online")
    process = start(tmp_path, "train.py", *words, env=server.environment, **PIPES)
    wait_for(lambda: any(each.history for each in server.runs.values()), process)
    server.stop()
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    gone = len(epochs_in(metrics))
    wait_for(lambda: len(epochs_in(metrics)) >= min(gone + 3, 12), process)
    server.start()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, out + errors
    (stored,) = server.runs.values()
    assert _epochs(stored) == list(range(1, 13))
    assert stored.exit_codes == [0]


def test_offline_segments_are_synced_into_one_run(tmp_path, server):
    words = (*WORDS[:-1], "run.workers=0", "run.wandb=offline")
    _stop_after_an_epoch(tmp_path, *words, "train.epochs=6", env={})
    folder = finish(tmp_path, *words, "train.epochs=6")
    segments = sorted(tmp_path.glob("runs/wandb/offline-run-*"))
    assert len(segments) == 2
    command = [sys.executable, "-m", "wandb", "sync", *map(str, segments)]
    env = os.environ | server.environment
    # it writes a log into the folder it is run in
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (stored,) = server.runs.values()
    assert stored.name == folder.name
    assert sorted(_epochs(stored)) == list(range(1, 7))


def test_the_agent_s_run_gets_a_configuration_that_is_finished(tmp_path, server):
    words = (*QUICK, "train.epochs=2", "run.wandb=online", f"run.root={tmp_path}/runs")
    for number in (1, 2):
        agent = {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": f"drawn{number}"}
        done = run(tmp_path, "train.py", *words, **server.environment, **agent)
        assert done.returncode == 0, done.stderr
    assert "is already finished" in done.stdout
    first, second = server.runs["drawn1"], server.runs["drawn2"]
    assert _epochs(second) == _epochs(first) == [1, 2]
    assert second.summary["best/top1"] == first.summary["best/top1"]
    # what made it is what trained it, not who showed it again
    (made_by,) = tmp_path.glob("runs/*/provenance.json")
    assert len(json.loads(made_by.read_text())["starts"]) == 1


def test_a_settings_file_and_old_words_count(tmp_path, server):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = filed\nentity = team\n")
    words = (*QUICK, "train.epochs=1", "run.root=runs")
    env = server.environment | {"WANDB_NAME": "named", "WANDB_RUN_GROUP": "grouped"}
    assert run(tmp_path, "train.py", *words, **env).returncode == 0
    (stored,) = server.runs.values()
    assert (stored.project, stored.values["entity"]) == ("filed", "team")
    assert (stored.values["displayName"], stored.values["groupName"]) == ("named", "grouped")
    done = run(
        tmp_path, "train.py", *words, "train.seed=1", "run.wandb_project=given", **env,
        WANDB_MODE="dryrun", WANDB_DIR=str(tmp_path / "elsewhere"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "W&B: offline, in " in done.stdout
    assert len(list(Path(tmp_path, "elsewhere", "wandb").glob("offline-run-*"))) == 1
    assert len(server.runs) == 1

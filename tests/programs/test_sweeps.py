"""Sweeps in parallel, on a scheduler, by search; repeated, they run only what is missing."""

import json
import signal
import subprocess

import programs
import pytest
import yaml
from hard_run import WORDS, wait_for
from hydra import compose, initialize_config_dir

from mobilenet_exp.command.program import CONF
from mobilenet_exp.command.sweeping import close_sweep, plan_of
from mobilenet_exp.tracking.sweeps import Sweep
from mobilenet_exp.tracking.terminal import print_sweep

SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=32", "data.batch_size=16",
    "model.stem_stride=2",
    "train.epochs=1", "run.device=cpu", "run.wandb=disabled",
)  # fmt: skip


def _sweep(folder, *words):
    return programs.run(folder, "train.py", *words, *SMALL)


def _jobs(folder):
    paths = sorted(folder.glob("runs/sweeps/*/job-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_a_width_sweep_in_parallel_runs_only_what_is_missing(tmp_path):
    """Through joblib; one job fails, says so at once, and does not stop the others."""
    words = ("experiment=width_sweep", "hydra/launcher=joblib", "model.width_mult=0.35,-1,0.5")
    done = _sweep(tmp_path, *words)
    assert done.returncode == 1
    assert "error: model.width_mult=-1.0: must be a number from 0.01" in done.stderr
    assert "sweep of 3 runs" in done.stdout
    assert [bool(job["error"]) for job in _jobs(tmp_path)] == [False, True, False]
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/v3*/checkpoints/last.pt")}
    assert len(runs) == 2

    # the same command with the bad width mended: a run is its configuration, not its sweep
    again = _sweep(tmp_path, words[0], "model.width_mult=0.35,0.25,0.5")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is already finished") == 2
    assert again.stdout.count("epoch 1/1") == 1
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


def test_a_sweep_through_submitit(tmp_path):
    """submitit_local starts a process a job as submitit_slurm has Slurm do."""
    words = ("experiment=width_sweep", "hydra/launcher=submitit_local")
    done = _sweep(tmp_path, *words, "model.width_mult=0.35,0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep of 2 runs" in done.stdout
    assert [job["results"]["width_mult"] for job in _jobs(tmp_path)] == [0.35, 0.5]
    assert len(list(tmp_path.glob("runs/v3*/results.json"))) == 2


def test_a_search_for_a_learning_rate(tmp_path):
    words = ("experiment=lr_search", "hydra.sweeper.n_trials=3", "model.width_mult=0.35")
    done = _sweep(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rates = [job["overrides"] for job in _jobs(tmp_path)]
    assert len({str(rate) for rate in rates}) == 3
    (found,) = tmp_path.glob("runs/sweeps/*/optimization_results.yaml")
    best = yaml.safe_load(found.read_text())
    assert best["best_value"] == max(job["results"]["top1"] for job in _jobs(tmp_path))
    assert f"best: optimizer.lr={best['best_params']['optimizer.lr']:.6g}, top-1" in done.stdout


def test_a_search_in_which_everything_fails_ends_in_words(tmp_path):
    done = _sweep(tmp_path, "experiment=lr_search", "hydra.sweeper.n_trials=2", "model.dropout=2")
    assert done.returncode in (1, 2)
    assert "error: model.dropout=2.0: must be in [0, 1)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("experiment", "key", "values"),
    [
        ("families", "model", "v1,v2,v3_large,v3_small,v4_conv_small"),
        ("width_sweep", "model.width_mult", "0.35,0.5,0.75,1.0"),
    ],
)
def test_a_sweep_is_a_file_with_a_name(experiment, key, values):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    assert composed.hydra.mode.name == "MULTIRUN"
    assert composed.hydra.sweeper.params[key] == values


def test_the_cluster_s_file_composes_and_queues_again():
    """What sbatch would be asked for; there is no Slurm here."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["experiment=width_sweep", "hydra/launcher=slurm"]
        composed = compose("config", words, return_hydra_config=True)
    launcher = composed.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.max_num_timeout > 0
    assert launcher.signal_delay_s == 120


def test_a_list_for_a_group_is_refused_in_a_sweep_too(tmp_path):
    done = _sweep(tmp_path, "-m", "model=[v2,v3_small]", "train.seed=0,1")
    assert done.returncode == 2
    assert done.stderr.count("error: model=[v2,v3_small]: takes one option") == 1


def test_a_stopped_sweep_says_what_ran_stopped_and_had_not_begun(tmp_path):
    words = (*WORDS, "run.workers=0", f"run.root={tmp_path}/runs")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    sweep = ("-m", "train.seed=1,2,3", "train.epochs=2,400")
    wide = {"env": {"COLUMNS": "200"}}
    process = programs.start(tmp_path, "train.py", *words, *sweep, **pipes, **wide)
    # the second job is under way
    wait_for(lambda: len(list(tmp_path.glob("runs/*/checkpoints/last.pt"))) == 2, process)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.startswith("stopped by SIGINT after epoch")
    table = out[out.index("sweep of 6 runs") :]
    assert (table.count("  stopped"), table.count("  not begun")) == (1, 4), table
    assert "4 runs not begun; repeat the command to go on" in table


def test_a_sweep_that_is_extended_keeps_its_group(tmp_path):
    groups = []
    for values in ("0.1,0.2", "0.1,0.2,0.4"):
        words = ("-m", f"optimizer.lr={values}", "model.name=nope", f"run.root={tmp_path}")
        sweep = _composed_sweep(*words)
        groups.append(sweep)
    assert groups[0][0] == groups[1][0] == "model.name=nope_optimizer.lr"
    assert [len(planned) for _, planned in groups] == [2, 3]
    assert groups[0][1][1] == ("optimizer.lr=0.2", "model.name=nope", f"run.root={tmp_path}")


def _composed_sweep(*words: str):
    """Return group and planned jobs of a sweep, from Hydra's own configuration of it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [], return_hydra_config=True)
    return plan_of(config, words[1:])


def test_a_search_among_words_ends_with_the_best_of_them(tmp_path, capsys):
    results = {"top1": 50.0, "madds": 1e6, "params": 1e6, "reference": None, "paper_reason": None}
    sweep = Sweep(tmp_path)
    sweep.begin("group", [])
    sweep.record(0, ("train.loss=bce",), results, None)
    best = {"best_params": {"train.loss": "bce", "optimizer.lr": 0.123456789}, "best_value": 50.0}
    (tmp_path / "optimization_results.yaml").write_text(yaml.safe_dump(best))
    assert close_sweep(sweep) == 0
    assert "optimizer.lr=0.123457 train.loss=bce, top-1 50.00; in" in capsys.readouterr().out


def test_a_precision_that_no_run_was_computed_in_is_noted(capsys):
    results = {"top1": 50.0, "madds": 1e6, "params": 1e6, "reference": None, "paper_reason": None}
    job = {"results": results | {"precision": "float32"}, "error": None, "is_stopped": False}
    words = [("run.precision=float32",), ("run.precision=bfloat16",)]
    print_sweep([job | {"number": n, "overrides": each} for n, each in enumerate(words)])
    printed = capsys.readouterr().out
    assert printed.count("computed in float32") == 1
    assert "precision=bfloat16: computed in float32" in printed

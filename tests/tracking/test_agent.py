"""`conf/wandb_sweep.yaml`, as the real client's `wandb sweep` and `wandb agent` take it."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from programs import ROOT
from wandb_server import WandbServer


def _wandb(folder: Path, *words: str, **env: str) -> str:
    # the agent starts `python`, whatever that is where it runs
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words],
        cwd=folder, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_agent_runs_what_the_sweep_draws(tmp_path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    words = {"model.width_mult": 0.35, "optimizer.lr": 0.02, "train.epochs": 1}
    with WandbServer() as server:
        server.drawn = [("drawn1", words)]
        _wandb(tmp_path, "sweep", str(ROOT / "conf" / "wandb_sweep.yaml"), **server.environment)
        sweep = yaml.safe_load(server.sweep)
        said = _wandb(tmp_path, "agent", "me/mobilenet_exp/abcd1234", **server.environment)
    (folder,) = tmp_path.glob("runs/v3_small-w0.35-*")
    assert (folder / "results.json").exists(), said
    (run,) = server.runs.values()
    assert run.name == "drawn1"
    # what the sweep goes by is what the run logs
    assert sweep["metric"]["name"] in run.summary
    assert run.exit_codes == [0]
    # every key that the sweep varies is one of the configuration
    for key in sweep["parameters"]:
        section, _, name = key.partition(".")
        assert name in run.config[section]["value"]

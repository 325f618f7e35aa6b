"""The programs as a person runs them: exit codes, output, what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hard_run import metrics
from PIL import Image
from programs import ROOT, run, start

# seconds a run, not minutes: few noise images, a narrow net
FAST = (
    "data=fake",
    "model.stem_stride=2",
    "data.resolution=32",
    "data.args.num_images=64",
    "model.width_mult=0.35",
    "run.device=cpu",
)


def _results(folder: Path) -> list[dict]:
    paths = sorted((folder / "runs").glob("*/results.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_train_then_evaluate(tmp_path):
    trained = run(tmp_path, "train.py", *FAST, "train.epochs=2", "model=v2", "optimizer=rmsprop")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("epoch ") >= 2
    assert "W&B: offline" in trained.stdout
    assert "not compared: fake is not ImageNet" in trained.stdout
    (results,) = _results(tmp_path)
    best = f"runs/{results['name']}/checkpoints/best.pt"
    evaluated = run(tmp_path, "eval.py", f"checkpoint={best}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{results['top1']:.2f}" in evaluated.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_sweep_runs_all_jobs_and_closes_with_one_table(tmp_path):
    words = (*FAST[:4], "train.epochs=1", "model=v1,v3_small", "model.width_mult=0.5,0")
    swept = run(tmp_path, "train.py", "-m", *words)
    assert swept.returncode == 1
    assert swept.stderr.count("error: model.width_mult=0.0: must be a number from 0.01 to 16") == 2
    assert "Traceback" not in swept.stderr
    table = swept.stdout[swept.stdout.index("sweep of 4 runs") :]
    for line in ("v1", "v3_small", "failed", "149", "21", "1.6", "job 1 failed"):
        assert line in table
    assert len(_results(tmp_path)) == 2
    # a look at the configuration touches nothing
    (records,) = (tmp_path / "runs" / "sweeps").iterdir()
    looked = run(tmp_path, "train.py", *words[:-2], "--cfg", "job")
    assert looked.returncode == 0, looked.stderr
    assert len(list(records.glob("job-*.json"))) == 4

    # the same sweep, written in another order and with the flag at its end
    again = run(tmp_path, "train.py", *reversed(words), "-m")
    assert again.stdout.count("is already finished") == 2
    assert "epoch 1/1" not in again.stdout
    assert list((tmp_path / "runs" / "sweeps").iterdir()) == [records]


def test_a_sweep_asked_for_by_config_in_a_folder_with_spaces(tmp_path):
    words = (*FAST, "train.epochs=1", "train.seed=1,2", "run.wandb=disabled")
    root = f"run.root='{tmp_path}/my runs'"
    swept = run(tmp_path, "train.py", "hydra.mode=MULTIRUN", root, *words)
    assert swept.returncode == 0, swept.stderr
    assert "sweep of 2 runs" in swept.stdout
    assert len(list((tmp_path / "my runs").glob("*/results.json"))) == 2


def test_a_sweep_of_bad_input_leaves_nothing_behind(tmp_path):
    for word, line in (
        ("model.width_mult=0,-1", "model.width_mult=0.0: must be a number from 0.01 to 16"),
        ("model.width_mult=0.5,abc", "model.width_mult=abc: must be a number"),
    ):
        swept = run(tmp_path, "train.py", "-m", word)
        assert swept.returncode == 2
        assert line in swept.stderr
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    run(tmp_path, "train.py", "model.width_mult=0,-1", "hydra.sweep.dir=mine/empty/s", "-m")
    assert list((tmp_path / "mine" / "empty").iterdir()) == []


def test_an_evaluation_does_not_sweep(tmp_path):
    done = run(tmp_path, "eval.py", "-m", "data=digits")
    assert (done.returncode, done.stderr) == (2, "error: --multirun: only train and bench sweep\n")
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_of_several_numbers_of_threads(tmp_path):
    words = ("models=[{name: v3_small, width_mult: 0.35}]", "batch_sizes=[1]", "resolution=32")
    quiet = ("run.wandb=disabled", "runtimes=[eager]", "rounds=1", "warmup=0")
    done = run(tmp_path, "bench.py", "-m", *words, *quiet, "run.threads=1,2")
    assert done.returncode == 0, done.stderr
    for text in ("cpu, float32, 1 thread,", "cpu, float32, 2 threads,"):
        assert text in done.stdout
    assert len(list((tmp_path / "runs").glob("bench-*/latency.json"))) == 2


@pytest.mark.parametrize(
    ("script", "word", "line"),
    [
        ("train.py", "model.widht_mult=1", "error: model.widht_mult=1: no such key"),
        (
            "train.py",
            "model.width_mult=0",
            "error: model.width_mult=0.0: must be a number from 0.01 to 16",
        ),
        ("train.py", "data=imagefolder", "error: data.root=null: must be given"),
        ("eval.py", "checkpoint=nowhere.pt", "error: checkpoint=nowhere.pt: no such file"),
        ("bench.py", "models=[v9]", "error: model.name=v9: not known; allowed: v1, v1_full_conv"),
    ],
)
def test_bad_input_is_one_line_an_exit_code_and_no_files(tmp_path, script, word, line):
    done = run(tmp_path, script, word)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_resumed_by_the_same_command(tmp_path):
    words = (*FAST, "train.epochs=12", "run.wandb=disabled")
    process = start(tmp_path, "train.py", *words)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/last.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert _results(tmp_path) == []

    again = run(tmp_path, "train.py", *words)
    assert again.returncode == 0, again.stderr
    assert "resumed after epoch" in again.stdout
    assert "epoch  1/12" not in again.stdout
    (results,) = _results(tmp_path)
    path = tmp_path / "runs" / results["name"] / "metrics.jsonl"
    assert [row["epoch"] for row in metrics(path)] == list(range(1, 13))
    # curves by step go on where they were, and overlap nothing
    steps = [row["step"] for row in metrics(path, "step")]
    assert steps == sorted(set(steps))
    assert steps[-1] % 12 == 0


@pytest.mark.parametrize("script", ["train.py", "eval.py", "bench.py"])
def test_composing_and_completing_do_not_load_torch(tmp_path, script):
    probe = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error:\n"
        "    assert not error.code, error.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'wandb', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    sys_path = {"PYTHONPATH": str(ROOT)}
    for words in (["--cfg", "job"], ["-sc", "query=bash"]):
        done = subprocess.run(
            [sys.executable, "-c", probe, str(ROOT / script), *words],
            cwd=tmp_path,
            env=os.environ | sys_path | {"COMP_LINE": f"python {script} ru", "COMP_POINT": "99"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "run" in done.stdout


def test_bench_prints_the_old_table_s_nets_and_ours(tmp_path):
    words = ("models=[torchvision:squeezenet1_0,v1,v3_small]", "batch_sizes=[2,1]")
    done = run(tmp_path, "bench.py", *words, "resolution=64", "rounds=3", "warmup=1",
               "runtimes=[folded]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in (
        "batch 2",
        "batch 1",
        "squeezenet1_0",
        "v1",
        "v3_small",
        "of 3 interleaved rounds",
        "latency.json, latency.csv",
    ):
        assert text in done.stdout


@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job")])
def test_a_reader_that_leaves_is_no_error(tmp_path, words):
    """`| head`: the pipe is closed before the program writes."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with os.fdopen(theirs, "w") as pipe:
        done = subprocess.run(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_goes_on_when_its_reader_leaves(tmp_path):
    """Nothing more is printed, and the files are complete."""
    process = start(
        tmp_path, "train.py", *FAST, "train.epochs=3", "run.wandb=disabled",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert process.stderr.read() == ""
    (results,) = _results(tmp_path)
    assert results["epochs"] == 3


def test_help_is_ours_and_complete(tmp_path):
    helped = run(tmp_path, "eval.py", "--help").stdout
    assert helped.startswith("Score a run's checkpoint, or weights of a file")
    assert helped.count("python eval.py") >= 4
    for text in ("data.on_bad_image=skip", "v4_hybrid_large", "run.precision=auto", "--config-dir"):
        assert text in helped


def _class_folders(root: Path) -> Path:
    """Two classes of noise images, one of the training images cut short."""
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("cat", "dog"):
            for number in range(count):
                path = root / split / kind / f"i{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((40, 40), 60).convert("RGB").save(path)
    cut = root / "train" / "cat" / "i3.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    return root


def test_a_damaged_image_in_a_loading_process_ends_the_run_and_all_its_processes(tmp_path):
    process = start(
        tmp_path, "train.py", "data=imagefolder", f"data.root={_class_folders(tmp_path / 'data')}",
        "data.resolution=32", "data.batch_size=4", "model.width_mult=0.25", "model.stem_stride=2",
        "train.epochs=1", "train.precise_bn_batches=0", "run.workers=2", "run.wandb=disabled",
        "run.device=cpu",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "i3.jpg cannot be decoded" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("data=digits",), "None"),
        (("data=digits", "run.workers=1"), "3000"),
        (("data=imagefolder", "data.root=x"), "3000"),
    ],
)
def test_torch_s_threads_sleep_sooner_beside_workers(tmp_path, words, count):
    (tmp_path / "note.py").write_text(
        "import os\nprint('spins', os.environ.get('GOMP_SPINCOUNT'))\nraise ValueError('enough')\n"
    )
    done = run(tmp_path, "train.py", *words, "run.imports=[note]", "run.wandb=disabled")
    assert f"spins {count}\n" in done.stdout, done.stderr

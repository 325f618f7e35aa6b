"""Every key that a program accepts is read by that program.

A program runs on a configuration that keeps a note of the fields that are read. Copying,
comparing and writing down a whole configuration is no reading.
"""

import dataclasses
import sys
from dataclasses import fields, is_dataclass

import pytest
from PIL import Image

from mobilenet_exp import compose, evaluate, train
from mobilenet_exp.config import convert, identity
from mobilenet_exp.deploy.job import bench
from mobilenet_exp.training import train as training

# what passes over whole configurations: dataclasses' own code, names, checks, comparison
PASSING = {dataclasses.__file__, convert.__file__, identity.__file__}


def _noting(config, read: set[str], prefix: str = ""):
    """Return the config with every section replaced by one that notes what is read."""
    kind = type(config)

    class Noting(kind):
        def __getattribute__(self, name):
            caller = sys._getframe(1)
            if name in kind.__dataclass_fields__ and _is_reading(caller, self):
                read.add(f"{prefix}{name}")
            return super().__getattribute__(name)

    copy = object.__new__(Noting)
    for entry in fields(kind):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            value = _noting(value, read, f"{prefix}{entry.name}.")
        object.__setattr__(copy, entry.name, value)
    return copy


def _is_reading(caller, section) -> bool:
    if caller.f_code.co_filename not in PASSING:
        return True
    # asdict(config.optimizer), whose keys go to a builder, reads that section
    while caller.f_code.co_filename in PASSING:
        if caller.f_code.co_name == "asdict":
            return caller.f_locals["obj"] is section
        caller = caller.f_back
    return False


def _keys(schema: type, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for entry in fields(schema):
        key = f"{prefix}{entry.name}"
        found |= _keys(entry.type, f"{key}.") if is_dataclass(entry.type) else {key}
    return found


QUIET = ("run.device=cpu", "run.wandb=disabled")
NOISE = ("data=fake", "data.args={num_images: 8, num_classes: 2}")
SMALL = (
    *QUIET, *NOISE, "model.width_mult=0.35", "data.resolution=64", "data.batch_size=4",
    "train.epochs=1",
)  # fmt: skip


def test_train_reads_every_key(tmp_path, monkeypatch):
    read: set[str] = set()

    def run(*words: str, common: tuple[str, ...] = SMALL) -> dict:
        return train(_noting(compose(*common, f"run.root={tmp_path}", *words), read))

    mixed = ("data.mixup=0.2", "data.cutmix=1", "data.random_erase=0.5", "train.ema_decay=0.9")
    first = run(*mixed, "data.augment=inception")
    best = f"{tmp_path}/{first['name']}/checkpoints/best.pt"
    run(f"weights={best}", f"distill.teacher={best}", "schedule.noise=[0.1,0.9]")
    run("train.quantise=int8")
    with pytest.raises(ValueError, match="distill"):
        run(f"distill.teacher={best}", "distill.model=v2")
    for words in (("data=imagenet", "data.labels=x"), ("data=cifar10",)):
        with pytest.raises(ValueError, match="data.root"):
            run(*words, "data.root=nowhere", common=QUIET)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    split = (f"data.root={tmp_path}/photos", "data.val_share=0.5", "data.batch_size=1")
    with pytest.raises(ValueError, match="needs at least 2 images"):
        run("data=imagefolder", *split, common=QUIET)
    monkeypatch.setattr(training, "launch", lambda *_, **__: {})
    run("run.devices=2")
    # `smoke` is settled when the configuration is composed
    assert _keys(type(compose(*SMALL))) - read == {"run.smoke"}
    assert compose(*SMALL, "run.smoke=true").train.epochs == 2


def test_eval_reads_every_key(tmp_path):
    read: set[str] = set()
    trained = train(compose(*SMALL, f"run.root={tmp_path}"))
    best = f"{tmp_path}/{trained['name']}/checkpoints/best.pt"

    def run(*words: str) -> None:
        config = compose(*QUIET, f"run.root={tmp_path}", *words, program="eval")
        evaluate(_noting(config, read))

    run(f"checkpoint={best}")
    run(f"weights={best}", "model=v3_small", "model.width_mult=0.35", *NOISE)
    # for a folder of images, an image and a list of labels there must be a reader, too
    with pytest.raises(ValueError, match=r"data\.root"):
        run(f"checkpoint={best}", "data=imagenet", "data.root=nowhere", "data.labels=x")
    assert _keys(type(compose(program="eval"))) - read == set()


def test_bench_reads_every_key(tmp_path):
    read: set[str] = set()
    words = ("models=[v3_small]", "batch_sizes=[1]", "resolution=32", "rounds=1", "warmup=0")
    config = compose(*QUIET, *words, f"run.root={tmp_path}", program="bench")
    bench(_noting(config, read))
    assert _keys(type(config)) - read == set()

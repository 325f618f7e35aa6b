"""Compiled networks, recorded passes, scaled losses: what they change, and what they may not."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from mobilenet_exp import train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.machine.compute import Precision
from mobilenet_exp.machine.distributed import World
from mobilenet_exp.training import step
from mobilenet_exp.training import train as training
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, make_updates
from mobilenet_exp.weights.checkpoint import load_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORDS = (
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1", "model.dropout=0",
)  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Trace as torch.compile does, and run the operators as they are: no compiler is needed.

    Holds the side of the images of each graph.
    """
    sides = []

    def backend(graph, inputs):
        sides.extend({each.shape[-1] for each in inputs if each.ndim == 4 and each.shape[1] == 3
                      and each.shape[0] == 16})  # fmt: skip
        return aot_eager(graph, inputs)

    compile_ = partial(torch.compile, backend=backend)

    def compiled(network, *, dynamic, mode):
        assert not dynamic
        return compile_(network, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compiled)
    yield sides
    torch._dynamo.reset()


def _updates(config) -> tuple[list[float], dict]:
    session = build_state(config)
    wrap_model(session)
    losses = []
    for _ in make_updates(session, no_progress):
        losses.append(session.meter.loss_sum.item())
    return losses, session.model.state_dict()


def test_a_compiled_network_learns_the_same_under_the_same_names(quick, traced):
    plain, weights = _updates(quick(*WORDS))
    found, ours = _updates(quick(*WORDS, "run.compile=true"))
    assert found == pytest.approx(plain, rel=1e-4)
    assert list(ours) == list(weights)


def _train_the_first_epoch(config, monkeypatch):
    """Train until the first epoch's updates are made and saved, and then fail."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "finish_epoch", None)
        with pytest.raises(TypeError):
            train(config)


def test_a_plain_run_goes_on_where_a_compiled_one_was_cut_off(
    quick, tmp_path, traced, monkeypatch, capsys
):
    words = (*WORDS, "train.epochs=2", "run.save_every_minutes=0")
    config = quick(*words, "run.compile=true")
    _train_the_first_epoch(config, monkeypatch)
    # it is no other run, as precision is none
    assert run_name(quick(*words)) == run_name(config)
    state = load_checkpoint(tmp_path / "runs" / run_name(config) / "checkpoints" / "last.pt")
    assert not [key for key in state["model"] if "orig_mod" in key]
    assert state["progress"]["update"] == 4
    capsys.readouterr()
    assert train(quick(*words))["epochs"] == 2
    assert "resum" in capsys.readouterr().out


def test_each_side_is_compiled_and_no_more_than_is_known(quick, traced):
    words = ("data.progressive_from=32", "data.resolution=64", "train.epochs=2")
    session = build_state(quick(*WORDS, *words, "run.compile=true"))
    wrap_model(session)
    for epoch in range(2):
        session.progress.epoch, session.progress.update = epoch, 0
        for _ in make_updates(session, no_progress):
            pass
    assert sorted(traced) == [32, 64]
    assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_what_cannot_be_compiled_is_one_line(quick, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    call = step.compiled(nn.Linear(2, 2), None)
    with pytest.raises(RunError, match="cannot be compiled: no C.. compiler; run.compile=false"):
        call(torch.ones(1, 2))
    torch._dynamo.reset()


def _on_cuda(state):
    return replace(state, compute=replace(state.compute, device=CUDA))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), ""),
        (("train.accumulate=2",), "needs train.accumulate=1"),
        (("train.quantise=int8",), "needs train.quantise=null"),
        (("data.progressive_from=32", "data.resolution=64"), "needs images of one side"),
    ],
)
def test_graphs_are_for_passes_that_are_all_alike(quick, words, problem):
    config = quick(*WORDS, "train.epochs=2", *words)
    session = build_state(config)
    sides = {32, 64} if "data.progressive_from=32" in words else {32}

    def asked(value, where=None, processes=1):
        asked_for = replace(config, run=replace(config.run, cuda_graphs=value))
        world = World(size=processes)
        return step.can_use_graphs(
            replace(where or _on_cuda(session), config=asked_for, world=world), sides
        )

    assert not asked("False")
    assert asked("auto") == (not problem)
    if problem:
        with pytest.raises(InputError, match=f"run.cuda_graphs=true: {problem}"):
            asked("True")
        return
    assert asked("True")
    with pytest.raises(InputError, match="needs a CUDA device"):
        asked("true", session)
    with pytest.raises(InputError, match="needs a training in one process"):
        asked("true", processes=2)
    assert not asked("auto", session)


def test_recording_changes_no_statistics_and_not_the_network(quick, monkeypatch):
    session = build_state(quick(*WORDS))
    before = {key: value.clone() for key, value in session.model.state_dict().items()}
    shapes = []

    def record(network, inputs):
        shapes.append([each.shape for each in inputs])
        network(*inputs)
        network.forward = lambda images: "replayed"
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    forward = step.graphed(session, 16, 32)
    assert shapes == [[(16, 3, 32, 32)]]
    assert forward(torch.ones(1)) == "replayed"
    assert session.model(torch.randn(2, 3, 32, 32)).shape == (2, session.num_classes)
    session.model.load_state_dict(before)
    forward = step.graphed(session, 16, 32)
    for key, value in session.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_float16_scales_its_loss_and_resumes_to_the_bit(quick_in, tmp_path, monkeypatch):
    words = (*WORDS, "train.epochs=2", "run.precision=float16", "run.save_every_minutes=0")
    whole, cut = (quick_in(tmp_path / name, *words) for name in ("whole", "cut"))
    assert build_state(whole).compute.precision is Precision.FLOAT16
    train(whole)
    _train_the_first_epoch(cut, monkeypatch)
    half = load_checkpoint(next((tmp_path / "cut").rglob("last.pt")))
    assert half["progress"]["epoch"] == 0
    train(cut)
    ours, theirs = (
        load_checkpoint(next((tmp_path / name).rglob("last.pt"))) for name in ("whole", "cut")
    )
    assert ours["scaler"]["scale"] > 1
    # updates without an overflow, counted through the cut
    assert ours["scaler"]["_growth_tracker"] == 8
    assert ours["scaler"] == theirs["scaler"]
    assert all(map(torch.equal, ours["model"].values(), theirs["model"].values()))

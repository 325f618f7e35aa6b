"""Quantisation-aware training: resumed to the bit, alike in several processes, evaluated."""

import sys

import pytest
import torch
from hard_run import assert_same
from states import crash_before_saving

from mobilenet_exp import evaluate, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.machine.launch import launch
from mobilenet_exp.models.fake_quantized import check_device, qparams
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, make_updates
from mobilenet_exp.weights.averaging import average, kept_path
from mobilenet_exp.weights.checkpoint import load_checkpoint, save_checkpoint
from mobilenet_exp.weights.load import load_run

pytest.importorskip("torchao")
CPU = torch.device("cpu")
ENDS = ("min", "max")
NOISE = (
    "data=fake", "data.resolution=32", "data.args={num_images: 48, num_classes: 3}",
    "data.batch_size=16", "train.quantise=int8", "train.ema_decay=0.9",
)  # fmt: skip


def test_an_interrupted_run_resumes_to_the_same_bits_and_is_scored_as_it_learned(
    quick, compose_config, tmp_path
):
    whole, cut = (quick(*NOISE, f"run.root={tmp_path}/{name}") for name in ("whole", "cut"))
    results = train(whole)
    with crash_before_saving(2):
        train(cut)
    train(cut)
    folders = [tmp_path / name / run_name(whole) / "checkpoints" for name in ("whole", "cut")]
    theirs, ours = (load_checkpoint(folder / "last.pt") for folder in folders)
    for key in ("model", "model_ema", "rounding"):
        assert_same(ours[key], theirs[key])
    # a network without rounding has the same weights in the same places
    assert ours["model"].keys() == load_run(str(folders[0] / "last.pt")).model.state_dict().keys()
    words = (f"checkpoint={folders[0]}/best.pt", "run.device=cpu", "run.wandb=disabled")
    scored = evaluate(compose_config(*words, program="eval"))
    assert scored["top1"] == results["top1"]
    assert "int8 (fake-quantised)" in load_run(str(folders[0] / "best.pt")).notes


def _ranges(config) -> list[dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    with joined(CPU) as world:
        session = build_state(config, world=world)
        wrap_model(session)
        updates = make_updates(session, no_progress)
        next(updates), next(updates)
        return world.gather(dict(session.fake_quantized.ranges.state_dict()))


def test_all_processes_round_by_the_same_ranges(quick):
    config = quick(*NOISE)
    first, second = launch(_ranges, (config,), processes=2, max_restarts=0)
    alone = _ranges(config)[0]
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    # the steps are those of the ranges that are shared
    for name in (key.removesuffix(".scale") for key in first if key.endswith(".scale")):
        least, greatest = (first[f"{name}.activation_post_process.{end}_val"] for end in ENDS)
        scale, zero = qparams(least, greatest)
        assert torch.equal(first[f"{name}.scale"], scale.view(1)), name
        assert torch.equal(first[f"{name}.zero_point"], zero.view(1)), name
    # of all their images: near to those of one process that had them all
    key = "stem:in.activation_post_process.max_val"
    assert first[key].item() == pytest.approx(alone[key].item(), rel=0.2)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("train.quantise=int4",), "train.quantise=int4: not known; allowed: int8"),
        (("run.compile=true",), "run.compile=True: does not work with train.quantise"),
        (("run.precision=bfloat16",), "run.precision=bfloat16: train.quantise needs float32"),
        (("run.cuda_graphs=true",), "run.cuda_graphs=true: needs a CUDA device"),
    ],
)
def test_what_does_not_go_with_it_is_refused(quick, words, problem):
    with pytest.raises(InputError) as caught:
        train(quick(*NOISE, *words))
    assert str(caught.value).startswith(problem)


@pytest.fixture(scope="module")
def trained(quick_in, tmp_path_factory):
    """The checkpoints of a run that learned to answer in 8 bits."""
    root = tmp_path_factory.mktemp("trained")
    results = train(quick_in(root, *NOISE, "run.keep_best=2"))
    assert results["quantise"] == "int8"
    return root / "runs" / results["name"] / "checkpoints"


def test_it_is_scored_in_float32_alone(trained, compose_config):
    words = (f"checkpoint={trained}/best.pt", "run.wandb=disabled", "run.device=cpu")
    config = compose_config(*words, "run.precision=bfloat16", program="eval")
    with pytest.raises(
        InputError, match="run.precision=bfloat16: the network was trained with train"
    ):
        evaluate(config)


def test_its_weights_need_no_library(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    loaded = load_run(str(trained / "best.pt"))
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(InputError, match=r"checkpoint=.*best.pt: needs torchao"):
        _ = loaded.network


def test_ranges_that_do_not_fit_are_one_line(trained, tmp_path):
    state = load_checkpoint(trained / "best.pt")
    del state["rounding"]["stem:in.scale"], state["format"]
    save_checkpoint(tmp_path / "best.pt", state)
    with pytest.raises(InputError, match="its int8 ranges do not fit its model") as caught:
        _ = load_run(str(tmp_path / "best.pt")).network
    assert "\n" not in str(caught.value)


def test_the_mean_of_checkpoints_has_the_mean_of_their_ranges(trained, tmp_path):
    states = [load_checkpoint(trained / "best.pt") for _ in range(2)]
    for number, state in enumerate(states):
        del state["format"]
        state["rounding"]["stem:in.activation_post_process.max_val"] = torch.tensor(1.0 + number)
        state["rounding"]["stem:in.activation_post_process.min_val"] = torch.tensor(-1.0)
        save_checkpoint(kept_path(tmp_path, number + 1), state)
    ranges = load_checkpoint(average(tmp_path))["rounding"]
    assert ranges["stem:in.activation_post_process.max_val"] == 1.5
    assert ranges["stem:in.scale"].item() == pytest.approx(2.5 / 255)
    assert ranges["stem:in.zero_point"].item() == -128 + 102
    assert _ranges_fit(ranges, states[0]["rounding"])


def _ranges_fit(ranges, others) -> bool:
    return all(
        (ranges[key].shape, ranges[key].dtype) == (value.shape, value.dtype)
        for key, value in others.items()
    )


def test_steps_are_those_that_torchao_computes():
    pt2e = pytest.importorskip("torchao.quantization.pt2e")
    for least, greatest in ((-1.0, 2.0), (0.5, 3.0), (-2.0, -0.1), (0.0, 0.0), (-1e-9, 5e4)):
        seen = pt2e.MovingAverageMinMaxObserver(
            dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
        )
        seen(torch.tensor([least, greatest]))
        for found, expected in zip(
            qparams(seen.min_val, seen.max_val), seen.calculate_qparams(), strict=True
        ):
            assert torch.equal(found.view(-1), expected.view(-1).to(found.dtype))


def test_devices_that_cannot_round_are_refused():
    check_device(torch.device("cuda"))
    with pytest.raises(InputError, match="run.device=mps: has no fake quantisation"):
        check_device(torch.device("mps"))

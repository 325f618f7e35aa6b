"""Training for 8 bits: resumed to the bit, alike in several processes, scored as it learned."""

import pytest
import torch
from hard_run import assert_same

from mobilenet_exp import evaluate, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.machine.elastic import launch
from mobilenet_exp.training import saving
from mobilenet_exp.training.loop import make_updates
from mobilenet_exp.training.session import build_session, connect
from mobilenet_exp.weights.checkpoint import load_checkpoint
from mobilenet_exp.weights.loaded import load_run

pytest.importorskip("torchao")
CPU = torch.device("cpu")
NOISE = (
    "data=fake", "data.resolution=32", "data.args={num_images: 48, num_classes: 3}",
    "data.batch_size=16", "train.quantise=int8", "train.ema_decay=0.9",
)  # fmt: skip


def test_an_interrupted_run_resumes_to_the_same_bits_and_is_scored_as_it_learned(
    quick, compose_config, tmp_path, monkeypatch
):
    whole, cut = (quick(*NOISE, f"run.root={tmp_path}/{name}") for name in ("whole", "cut"))
    results = train(whole)
    save = saving.save

    def crash_at_2(session, *words, **options):
        if session.progress.epoch == 2:
            raise RuntimeError("power cut")
        save(session, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", crash_at_2)
        with pytest.raises(RuntimeError, match="power cut"):
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
    assert "rounded as in 8 bits" in load_run(str(folders[0] / "best.pt")).notes


def _ranges(config) -> list[dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    with joined(CPU) as team:
        session = build_session(config, team)
        connect(session)
        updates = make_updates(session, no_progress)
        next(updates), next(updates)
        found = session.learner.rounding.ranges.state_dict()
        return team.gather({key: value for key, value in found.items() if "_val" in key})


def test_all_processes_round_by_the_same_ranges(quick):
    config = quick(*NOISE)
    first, second = launch(_ranges, (config,), processes=2, max_restarts=0)
    alone = _ranges(config)[0]
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    # of all their images: near to those of one process that had them all
    key = "stem:in.activation_post_process.max_val"
    assert first[key].item() == pytest.approx(alone[key].item(), rel=0.2)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("train.quantise=int4",), "train.quantise=int4: not known; allowed: int8"),
        (("run.compile=true",), "run.compile=True: is not for train.quantise"),
        (("run.precision=bfloat16",), "run.precision=bfloat16: train.quantise rounds float32"),
        (("run.cuda_graphs=true",), "run.cuda_graphs=true: needs a CUDA device"),
    ],
)
def test_what_does_not_go_with_it_is_refused(quick, words, problem):
    with pytest.raises(InputError) as caught:
        train(quick(*NOISE, *words))
    assert str(caught.value).startswith(problem)

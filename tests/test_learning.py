"""What recipes are made of: averages, mixing, erasing, teachers, probes, rising sides."""

import pytest
import torch
from PIL import Image
from torch import nn

from mobilenet_exp import build_model
from mobilenet_exp.config.schema import DataConfig, DistillConfig, EvalConfig, RunConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.mixing import build_mixing
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.data.sampler import Order
from mobilenet_exp.data.transforms import side_of_epoch, train_transform
from mobilenet_exp.deploy import job as run
from mobilenet_exp.machine.distributed import Team
from mobilenet_exp.models.network import set_stochastic_depth
from mobilenet_exp.training.distillation import Teacher
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.loop import finish_epoch, train_epoch
from mobilenet_exp.training.optim import build_optimizer
from mobilenet_exp.training.session import build_session
from mobilenet_exp.weights.checkpoint import load_checkpoint
from mobilenet_exp.weights.loaded import load_subject

SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _data(**options) -> DataConfig:
    common = {"name": "fake", "batch_size": 4, "resolution": 32, "crop_pct": 1.0}
    return DataConfig(augment="none", mean=MEAN, std=STD, **(common | options))


def test_an_average_warms_up_to_its_decay_and_covers_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = Average(net, decay=0.9, every=2, warmup=True)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].running_mean.fill_(1.0)
    average.update(net, 0)
    assert average.model[1].running_mean.sum() == 0
    average.update(net, 1)
    # the first step takes the weights over: nothing of the initial ones stays
    assert torch.equal(average.model[0].weight, net[0].weight)
    assert torch.equal(average.model[1].running_mean, net[1].running_mean)
    with torch.no_grad():
        net[1].running_mean.fill_(2.0)
    for step in range(2, 2000):
        average.update(net, step)
    before = average.model[1].running_mean.clone()
    with torch.no_grad():
        net[1].running_mean.fill_(3.0)
    average.update(net, 2001)
    torch.testing.assert_close(average.model[1].running_mean, 0.9 * before + 0.1 * 3.0)


def test_a_run_reports_and_keeps_both_kinds_of_weights(quick, tmp_path):
    results = run.train(quick(*SMALL, "train.ema_decay=0.9", "train.epochs=2"))
    folder = tmp_path / "runs" / results["name"]
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert not torch.equal(
        state["model"]["stem.conv.weight"], state["model_ema"]["stem.conv.weight"]
    )
    for wants, part in ((True, "model_ema"), (False, "model")):
        config = EvalConfig(checkpoint=str(folder / "checkpoints" / "last.pt"), ema=wants)
        subject = load_subject(config)
        assert torch.equal(subject.model.stem.conv.weight, state[part]["stem.conv.weight"])
    cpu = RunConfig(device="cpu", wandb="disabled", root=str(tmp_path / "runs"))
    scores = run.evaluate(EvalConfig(checkpoint=str(folder / "checkpoints" / "best.pt"), run=cpu))
    assert scores["top1"] == results["top1"]


def test_mixing_joins_images_and_labels_in_the_same_shares():
    mixing = build_mixing(_data(mixup=0.5), num_classes=4, seed=0)
    images = torch.eye(4).view(4, 1, 2, 2).repeat(1, 3, 1, 1)
    labels = torch.arange(4)
    mixed, targets = mixing(images.clone(), labels, step=5)
    share = targets[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    again, _ = mixing(images.clone(), labels, step=5)
    assert torch.equal(again, mixed)
    other, _ = mixing(images.clone(), labels, step=6)
    assert not torch.equal(other, mixed)


def test_cutmix_shares_are_areas_and_nothing_is_mixed_unless_asked():
    assert build_mixing(_data(), 2, 0) is None
    mixing = build_mixing(_data(cutmix=1.0), num_classes=2, seed=1)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    mixed, targets = mixing(images, torch.tensor([0, 1]), step=0)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert targets[0, 1].item() == pytest.approx(mixed[0].mean().item())
    never = build_mixing(_data(cutmix=1.0, mix_prob=0.0), num_classes=2, seed=1)
    assert torch.equal(never(images.clone(), torch.tensor([0, 1]), step=0)[0], images)


def test_an_odd_batch_cannot_be_mixed(quick):
    with pytest.raises(InputError, match=r"data.batch_size=15: must be a multiple of .* pairs = 2"):
        build_session(quick(*SMALL, "data.mixup=0.2", "data.batch_size=15"))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "ta_wide", "rand-m9-n2-mstd0.5"])
def test_every_policy_changes_images_and_keeps_their_shape(policy):
    plain, augmented = train_transform(_data()), train_transform(_data(auto_augment=policy))
    noise = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    photo = Image.fromarray(noise.permute(1, 2, 0).numpy())
    for image in (noise, photo):
        results = [augmented(image) for _ in range(8)]
        assert all(each.shape == (3, 32, 32) for each in results)
        assert any(not torch.equal(each, plain(image)) for each in results)


@pytest.mark.parametrize("policy", ["rand-q9", "autoaugment", "rand-mx", "rand"])
def test_a_policy_that_is_not_understood_is_refused(policy):
    if policy == "rand":
        policy = "random"
    with pytest.raises(InputError, match=f"data.auto_augment={policy}: not understood; allowed"):
        train_transform(_data(auto_augment=policy))


def test_erasing_takes_the_mean_or_noise():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    assert train_transform(_data(random_erase=1.0))(image).eq(0).any()
    noisy = train_transform(_data(random_erase=1.0, erase_mode="pixel"))(image)
    assert len(noisy.unique()) > 50


def test_an_image_comes_as_often_as_augmentation_is_repeated():
    order = Order(64, 16, seed=0, side_at=lambda _: 32, repeats=4)
    keys = [key for batch in order for key in batch]
    assert len(keys) == 64
    assert len({key.index for key in keys}) == 16
    assert len({key.seed for key in keys}) == 64


def test_the_side_rises_to_that_of_training():
    data = _data(resolution=224, train_resolution=192, progressive_from=96)
    sides = [side_of_epoch(data, epoch, 10) for epoch in range(1, 11)]
    assert (sides[0], sides[-1]) == (96, 192)
    assert sides == sorted(sides)
    assert all(side % 32 == 0 for side in sides)
    assert side_of_epoch(_data(resolution=224), 1, 10) == 224
    built = build_model("v3_small", width_mult=0.35, num_classes=10)
    assert {built(torch.randn(1, 3, side, side)).shape for side in sides} == {(1, 10)}


def test_a_session_s_batches_have_the_epoch_s_side(quick):
    words = (*SMALL, "data.resolution=96", "data.progressive_from=32", "train.epochs=3")
    session = build_session(quick(*words))
    found = []
    for _ in range(3):
        session.loaders.order.set_position(len(found) + 1)
        found.append(next(iter(session.loaders.train))[0].shape[-1])
    assert found == [32, 64, 96]


def test_depthwise_filters_may_be_spared_from_decay():
    model = build_model("v1", width_mult=0.25, num_classes=10)
    depthwise = {id(block.depthwise.conv.weight) for block in model.blocks}
    for decays in (True, False):
        optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=1e-4, decay_depthwise=decays)
        decayed = {id(each) for each in optimizer.param_groups[0]["params"]}
        assert (depthwise <= decayed) is decays
        assert depthwise.isdisjoint(decayed) is not decays
        assert id(model.classifier.weight) in decayed


def test_branches_are_dropped_in_training_only_and_more_often_with_depth():
    model = build_model("v2", num_classes=10, stochastic_depth=0.5)
    places = [block.drop_branch.p for block in model.blocks]
    assert places == [0.5 * index / 17 for index in range(17)]
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(images), model(images))
    plain = build_model("v2", num_classes=10)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(images), model(images))
    model.train()
    features = torch.randn(64, 24, 8, 8)
    out = model.blocks[2].drop_branch(torch.ones_like(features))
    dropped = (out == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 32
    with pytest.raises(InputError, match="model.stochastic_depth=0.1: v1 has no shortcuts"):
        build_model("v1", stochastic_depth=0.1)
    with pytest.raises(InputError, match=r"stochastic_depth=1: must be in \[0, 1\)"):
        set_stochastic_depth(model, 1)


def test_gradients_are_clipped_to_a_norm(quick):
    session = build_session(quick(*SMALL, "train.clip_grad_norm=0.001"))
    next(iter(train_epoch(session, console.progress)))
    grads = [each.grad for each in session.model.parameters()]
    assert nn.utils.get_total_norm(grads).item() <= 0.001 * 1.001


def test_a_probe_learns_the_classifier_and_nothing_else(quick, tmp_path):
    first = run.train(quick(*SMALL))
    best = tmp_path / "runs" / first["name"] / "checkpoints" / "best.pt"
    words = (f"weights={best}", "train.trainable=classifier", "optimizer.lr=0.5")
    results = run.train(quick(*SMALL, *words))
    after = load_checkpoint(tmp_path / "runs" / results["name"] / "checkpoints" / "last.pt")
    before = load_checkpoint(best)
    changed = {
        key for key, value in before["model"].items() if not torch.equal(after["model"][key], value)
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    assert results["params"] == first["params"]


def test_a_teacher_s_part_of_the_loss_is_its_share():
    """By hand: T squared times the divergence of the softened answers."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    knows, sees = Preprocessing(mean=[0.5] * 3, std=[0.5] * 3), Preprocessing()
    config = DistillConfig(teacher="x", temperature=2.0, share=0.25)
    teacher = Teacher(net, knows, sees, config)
    pixels = torch.rand(4, 3, 8, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    logits, loss = torch.randn(4, 5), torch.tensor(1.5)
    joined = teacher.join(loss, logits, (pixels - mean) / std)
    answers = net((pixels - 0.5) / 0.5)
    p = (answers / 2).softmax(1)
    distance = (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(joined, 0.75 * loss + 0.25 * 4 * distance, rtol=1e-4, atol=1e-5)


def test_a_student_learns_from_a_run_s_checkpoint(quick, tmp_path):
    first = run.train(quick(*SMALL, "model=v2"))
    best = tmp_path / "runs" / first["name"] / "checkpoints" / "best.pt"
    config = quick(*SMALL, f"distill.teacher={best}", "distill.share=1.0")
    session = build_session(config)
    teacher = load_checkpoint(best)["model"]["stem.conv.weight"]
    assert torch.equal(session.learner.teacher.net.stem.conv.weight, teacher)
    for _ in train_epoch(session, console.progress):
        pass
    metrics, _ = finish_epoch(session)
    # all of the loss is the distance to the teacher, which is less than that to the labels
    assert metrics["train/loss"] < 2.0
    assert torch.equal(session.learner.teacher.net.stem.conv.weight, teacher)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("distill.teacher=nowhere.pt",), "distill.teacher=nowhere.pt: no such file"),
        (
            ("distill.teacher=timm:nonet.x",),
            "distill.teacher=timm:nonet.x: not known to timm",
        ),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(quick, words, line):
    with pytest.raises(InputError) as caught:
        build_session(quick(*SMALL, *words))
    assert str(caught.value).startswith(line)


def test_a_teacher_of_other_classes_is_refused(quick, tmp_path):
    results = run.train(quick(*SMALL, "data.args.num_classes=7"))
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    with pytest.raises(InputError, match="distill.teacher=.*: learned other classes than"):
        build_session(quick(*SMALL, f"distill.teacher={best}"))


def test_statistics_may_stay_as_they_are(quick):
    session = build_session(quick(*SMALL, "train.bn=frozen"), Team())
    before = session.model.stem.bn.running_mean.clone()
    for _ in train_epoch(session, console.progress):
        pass
    finish_epoch(session)
    assert torch.equal(session.model.stem.bn.running_mean, before)
    assert session.model.stem.bn.num_batches_tracked == 0


def test_channels_last_changes_no_result(quick):
    """It is the default; the figures stay within rounding of the other's."""
    losses = []
    for layout in ("contiguous", "channels_last"):
        session = build_session(quick(*SMALL, f"run.memory_format={layout}"))
        for _ in train_epoch(session, console.progress):
            pass
        losses.append(finish_epoch(session)[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert build_session(quick(*SMALL)).learner.memory_format is torch.channels_last

"""Updates on CUDA as far as that goes without one: under PyTorch's fake tensors.

Fake tensors have a shape and a device and no content. An operator that gets tensors of two
devices fails, and so does whoever asks what is in one: that would wait for a GPU. Torch's
backward pass wants the driver even then, so gradients of the right shape stand in for it; on a
fake CPU it runs.
"""

import pytest
import torch
from states import bare_state, make_updates
from timm.utils import model_ema
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.machine.compute import Compute, Precision
from mobilenet_exp.models import build_model
from mobilenet_exp.training import optim
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.losses import LOSSES
from mobilenet_exp.training.optim import OPTIMIZERS, build_optimizer
from mobilenet_exp.training.state import TrainState

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES = 10
FAMILIES = (
    "v1", "v2", "v3_large", "v3_small", "v3_large_minimalistic", "v3_edgetpu", "kuanwang_v3_small",
    "v4_conv_small", "v4_conv_medium", "v4_hybrid_medium",
)  # fmt: skip


@pytest.fixture(autouse=True)
def fake():
    with FakeTensorMode() as mode:
        yield mode


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Let `backward` of a loss on CUDA give each parameter a gradient."""
    backward = torch.Tensor.backward

    def stand_in(loss):
        if loss.device.type == "cpu":
            return backward(loss)
        assert loss.shape == ()
        assert loss.requires_grad
        for param in LEARNING:
            param.grad = torch.empty_like(param)

    monkeypatch.setattr(torch.Tensor, "backward", stand_in)


@pytest.fixture(autouse=True)
def unfused(monkeypatch):
    """Torch's fused rules have no fake kernels."""
    monkeypatch.setattr(optim, "_is_on_cuda", lambda groups: None)


LEARNING: list[nn.Parameter] = []


def _state(
    model_name: str = "v3_small",
    optimizer: str = "sgd",
    device: torch.device = CUDA,
    words: tuple[str, ...] = (),
    **options,
) -> TrainState:
    with device:
        model = build_model(model_name, width_mult=0.35, num_classes=CLASSES)
    LEARNING[:] = model.parameters()
    common = {
        "optimizer": build_optimizer(model, optimizer, lr=0.01, weight_decay=1e-5),
        "lr_at": lambda step: 0.01 / (1 + step),
        "loss_fn": LOSSES.get("cross_entropy")(0.1),
    }
    compute = Compute(device, Precision.BFLOAT16 if device is CUDA else Precision.FLOAT32)
    return bare_state(model, *words, compute=compute, **common | options)


def _update_twice(state: TrainState) -> None:
    # images come from this machine or are on the GPU already
    parts = state.config.train.accumulate
    make_updates(
        state,
        [
            ((torch.empty(4, 3, 64, 64, device=device), torch.empty(4, dtype=torch.long)),) * parts
            for device in (state.compute.device, CPU)
        ],
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_and_answers_there_without_a_wait(name):
    state = _state(name)
    _update_twice(state)
    assert state.meter.loss_sum.device.type == "cuda"
    assert state.meter.num_images == 8
    state.model.eval()
    with torch.inference_mode():
        assert state.model(torch.empty(2, 3, 64, 64, device=CUDA)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["v1", "v3_small", "v4_conv_small", "v4_hybrid_medium"])
def test_no_block_asks_what_is_in_a_tensor_on_its_way_back(name):
    _update_twice(_state(name, device=CPU))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_no_rule_waits(optimizer):
    _update_twice(_state(optimizer=optimizer, words=("train.clip_grad_norm=5",)))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_what_recipes_add_does_not_wait(loss, monkeypatch):
    data = DataConfig(name="fake", batch_size=4, resolution=64, mixup=0.2, cutmix=1.0)
    mixing = Mixing(data, CLASSES, 0, epochs=1, steps_per_epoch=10)
    words = ("train.accumulate=2", "train.bn=frozen")
    state = _state(words=words, mixing=mixing, loss_fn=LOSSES.get(loss)(0.1))
    # a generator on the network's device is not to be had
    generator = torch.Generator()
    monkeypatch.setattr(torch, "Generator", lambda device: generator)
    # a copy of a fake tensor would be of another mode
    monkeypatch.setattr(model_ema, "deepcopy", lambda model: _state().model)
    state.average = Average(state.model, decay=0.99, every=1, warmup=True)
    LEARNING[:] = state.model.parameters()
    _update_twice(state)


def test_leaving_out_an_update_waits_as_it_says():
    with pytest.raises(DataDependentOutputException):
        _update_twice(_state(words=("train.on_nonfinite=skip",)))


def test_tensors_of_two_devices_are_noticed():
    state = _state()
    state.model.classifier = nn.Linear(state.model.classifier.in_features, CLASSES)
    with pytest.raises(RuntimeError, match="device"):
        _update_twice(state)

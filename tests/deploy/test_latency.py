"""The latency table: what is timed, how, and against what it is checked."""

import pytest
import torch
from torch import nn

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.deploy import latency, runtimes
from mobilenet_exp.deploy.latency import measure_latency, peak_of, quartiles
from mobilenet_exp.deploy.nets import Net, build_nets
from mobilenet_exp.deploy.one_call import TABLE_MS, measure_one_call
from mobilenet_exp.deploy.runtimes import RUNTIMES
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.models.profiling import Profile

COMPUTE = Compute(torch.device("cpu"), threads=1)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    monkeypatch.setattr(latency, "REST", 0.0)
    monkeypatch.setattr(latency, "TURN_MS", 0.0)
    monkeypatch.setattr(latency, "SIDE_OF_PRODUCT", {"cpu": 256})


def _measure(nets, *names, batch_sizes=(2, 1), **options):
    common = {"warmup": 1, "rounds": 3, "compute": COMPUTE, "peak": 100.0, "progress": no_progress}
    return measure_latency(nets, names or ("eager",), batch_sizes, **(common | options))


class Recorder(nn.Module):
    """A network that notes its calls."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls
        self.linear = nn.Linear(1, 1)

    def forward(self, images):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.calls.append((self.name, len(images)))
        return self.linear(images[:, :1, 0, 0])

    def __deepcopy__(self, memo):
        return self


def _recorded(*names):
    calls = []
    nets = [Net(name, name, Recorder(name, calls).eval(), 32, Profile(1, 2)) for name in names]
    return nets, calls


def test_rows_hold_median_quartiles_speed_and_counts():
    nets = build_nets(["torchvision:squeezenet1_0", "v3_small"], 64)
    rows = _measure(nets, "eager", "folded")
    assert [(row["batch_size"], row["model"], row["runtime"]) for row in rows[:4]] == [
        (2, "squeezenet1_0", "eager"),
        (2, "squeezenet1_0", "folded"),
        (2, "v3_small", "eager"),
        (2, "v3_small", "folded"),
    ]
    for row in rows:
        ordered = [row[key] for key in ("fastest_ms", "lower_ms", "latency_ms", "upper_ms")]
        assert ordered[0] > 0
        assert ordered == sorted(ordered)
        per_s = 1000 * row["batch_size"] / row["latency_ms"]
        assert row["images_per_s"] == pytest.approx(per_s)
        assert row["gmacs_per_s"] == pytest.approx(per_s * row["madds"] / 1e9)
        assert row["peak_share"] == pytest.approx(row["gmacs_per_s"] / 100)
        assert row["difference"] < 1e-4
        assert row["memory_mb"] is None or row["memory_mb"] < 200
        assert row["problem"] == ""
    assert rows[2]["params"] == 2542856
    # torchvision's own published count of SqueezeNet 1.0
    assert rows[0]["params"] == 1248424


def test_networks_take_turns_after_a_warm_up():
    nets, calls = _recorded("a", "b")
    _measure(nets, batch_sizes=(2,), rounds=3)
    # one untimed forward and one that counts
    assert calls[-12:] == [("a", 2), ("a", 2), ("b", 2), ("b", 2)] * 3
    # each is compared with its own answers, and called until its time is steady
    warm = calls[:-12]
    assert warm == [("a", 2)] * warm.count(("a", 2)) + [("b", 2)] * warm.count(("b", 2))


def test_a_turn_is_the_median_of_what_it_has_time_for(monkeypatch):
    times = iter([90.0, 20.0, 25.0, 15.0, 1.0])
    monkeypatch.setattr(latency, "_time", lambda *_: next(times))
    monkeypatch.setattr(latency, "TURN_MS", 50.0)
    assert latency._turn(None, None) == 20.0
    assert next(times) == 1.0


def test_a_warm_up_ends_once_a_forward_takes_as_long_as_before(monkeypatch):
    times = iter([9.0, 5.0, 3.0, 3.1, 0.1])
    monkeypatch.setattr(latency, "_time", lambda *_: next(times))
    latency._warm_up(None, None, 2)
    assert next(times) == 0.1


def test_compiled_networks_are_prepared_after_those_that_make_torch_forget_them(monkeypatch):
    prepared = []

    def prepare(runtime, model, images, compute):
        prepared.append(runtime)
        return model

    monkeypatch.setattr(latency, "prepare", prepare)
    # ExecuTorch need not be installed
    monkeypatch.setattr(latency, "check_runtimes", lambda *_: None)
    nets, _ = _recorded("a")
    rows = _measure(nets, "eager", "compiled", "executorch", batch_sizes=(1,))
    assert prepared == ["eager", "executorch", "compiled"]
    assert [row["runtime"] for row in rows] == ["eager", "compiled", "executorch"]


def test_a_fast_wrong_answer_is_no_result(monkeypatch):
    nets, _ = _recorded("a", "b")

    def wrong(model, images, compute):
        return lambda images: model(images) * (2 if model.name == "b" else 1)

    monkeypatch.setitem(RUNTIMES._builders, "wrong", wrong)
    right, refused = _measure(nets, "wrong", batch_sizes=(2,))
    assert right["latency_ms"] > 0
    assert (refused["latency_ms"], refused["images_per_s"]) == (None, None)
    assert refused["problem"].startswith("its answers differ from torch's by ")


def test_what_does_not_fit_is_one_line_in_its_place(monkeypatch):
    nets, _ = _recorded("a", "b")

    def hungry(model, images, compute):
        if model.name == "a":
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")
        return model

    monkeypatch.setitem(RUNTIMES._builders, "hungry", hungry)
    refused, right = _measure(nets, "hungry", batch_sizes=(2,))
    assert refused["problem"].startswith("memory does not suffice")
    assert right["latency_ms"] > 0


class Forgetful(Recorder):
    """A network that fails after some calls, when it is warm."""

    def forward(self, images):
        if len(self.calls) > 30:
            raise RunError("what was compiled is forgotten")
        return super().forward(images)


def test_what_fails_in_a_round_costs_the_others_nothing():
    nets = [
        Net(name, name, kind(name, []).eval(), 32, Profile(1, 2))
        for name, kind in (("a", Forgetful), ("b", Recorder))
    ]
    bad, good = _measure(nets, batch_sizes=(1,), rounds=20)
    assert (bad["problem"], bad["latency_ms"]) == ("what was compiled is forgotten", None)
    assert (good["problem"], len(nets[1].model.calls) > 40) == ("", True)


def test_the_peak_is_that_of_a_matrix_product(monkeypatch):
    monkeypatch.setattr(latency, "_time", lambda *_: 100.0)
    assert peak_of(COMPUTE) == pytest.approx(256**3 / 0.1 / 1e9)


def test_quartiles_of_few_times():
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 4.0)


def test_one_call_is_timed_in_training_mode_and_changes_nothing():
    assert len(TABLE_MS) == 10
    assert TABLE_MS["v1", 16] == 73.611
    (net,) = build_nets([{"name": "v1", "width_mult": 0.25}], 64)
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    modes = []
    net.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    (call,) = measure_one_call([net], [2], COMPUTE)
    assert modes == [True, True]
    assert not net.model.training
    assert all(torch.equal(value, before[name]) for name, value in net.model.state_dict().items())
    assert (call.model, call.published_ms) == ("v1 0.25 64 px", None) or call.ms > 0


def test_the_old_table_is_shown_at_its_own_size_only():
    (net,) = build_nets(["torchvision:squeezenet1_0"], 224)
    assert measure_one_call([net], [1], COMPUTE)[0].published_ms == 3.385
    (net,) = build_nets(["torchvision:squeezenet1_0"], 64)
    assert measure_one_call([net], [1], COMPUTE)[0].published_ms is None


@pytest.mark.parametrize(
    ("name", "compute", "problem"),
    [
        (
            "fast",
            COMPUTE,
            "runtimes=fast: not known; allowed: eager, folded, compiled, cuda_graphs",
        ),
        ("cuda_graphs", COMPUTE, "runtimes=cuda_graphs: is for CUDA devices, not for cpu"),
        ("compiled_cuda_graphs", COMPUTE, "runtimes=compiled_cuda_graphs: is for CUDA devices"),
        (
            "onnxruntime",
            Compute(torch.device("cuda"), threads=1),
            "runtimes=onnxruntime: is for a CPU in float32 here, not cuda in float32",
        ),
    ],
)
def test_runtimes_that_are_not_for_this_are_refused(name, compute, problem):
    with pytest.raises(InputError) as caught:
        runtimes.check_runtimes([name], compute)
    assert str(caught.value).startswith(problem)


def test_a_library_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(InputError, match="needs openvino, which is not installed: pip install 'mo"):
        runtimes.check_runtimes(["openvino"], COMPUTE)

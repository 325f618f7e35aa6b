"""The latency table: what is timed, and how."""

import pytest
import torch
from torch import nn

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy import latency as benchmark

CPU = torch.device("cpu")


def _measure(names, **options):
    common = {"resolution": 64, "warmup": 1, "rounds": 3, "device": CPU}
    show = lambda turns, label, total: turns  # noqa: E731
    return benchmark.measure_latency(names, (2, 1), progress=show, **(common | options))


def test_rows_hold_median_and_spread_and_counts():
    rows = _measure(["torchvision:squeezenet1_0", "v3_small"])
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("torchvision:squeezenet1_0", 2),
        ("v3_small", 2),
        ("torchvision:squeezenet1_0", 1),
        ("v3_small", 1),
    ]
    for row in rows:
        assert 0 < row["fastest_ms"] <= row["latency_ms"] <= row["slowest_ms"]
    assert rows[1]["params"] == 2542856
    # torchvision's own published count of SqueezeNet 1.0
    assert rows[0]["params"] == 1248424


def test_nets_take_turns_in_eval_mode_after_a_warm_up(monkeypatch):
    calls = []

    class Recorder(nn.Linear):
        def __init__(self, name):
            super().__init__(1, 1)
            self.name = name

        def forward(self, images):
            if images.device.type != "meta":
                assert not self.training
                assert torch.is_inference_mode_enabled()
                calls.append((self.name, len(images)))
            return super().forward(images[:, :1, 0, 0])

    monkeypatch.setattr(benchmark, "_build", Recorder)
    _measure(["a", "b"], warmup=2, rounds=3)
    assert calls == [("a", 2), ("b", 2)] * 5 + [("a", 1), ("b", 1)] * 5


def test_the_old_table_is_shown_only_at_its_own_size():
    old = benchmark.OLD_TABLE_MS
    assert len(old) == 10
    assert old["v1", 16] == 73.611
    assert all(row["old_ms"] is None for row in _measure(["v1"], rounds=1))


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="models=torchvision:lenet: not a classifier"):
        _measure(["torchvision:lenet"])
    # a detector would fetch weights for its backbone
    with pytest.raises(InputError, match="fasterrcnn_resnet50_fpn: not a classifier"):
        _measure(["torchvision:fasterrcnn_resnet50_fpn"])
    with pytest.raises(InputError, match="resolution=32: torchvision:alexnet does not take it"):
        _measure(["torchvision:alexnet"], resolution=32)
    with pytest.raises(InputError, match="model.name=v9: not known"):
        _measure(["v9"])

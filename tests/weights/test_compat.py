"""kuan-wang's call works as its README has it."""

import pytest
import torch
from layout_nets import KuanWangV3, assert_same_logits, randomize

from mobilenet_exp import mobilenetv3
from mobilenet_exp.core.errors import InputError


@pytest.mark.parametrize("mode", ["small", "large"])
def test_the_old_readme_s_call_works_as_it_stood(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = randomize(KuanWangV3(mode))
    torch.save(theirs.state_dict(), "mobilenetv3_small_67.4.pth.tar")
    # as in kuan-wang/pytorch-mobilenet-v3's README
    net_small = mobilenetv3(mode=mode)
    state_dict = torch.load("mobilenetv3_small_67.4.pth.tar")
    net_small.load_state_dict(state_dict)
    assert_same_logits(theirs, net_small.eval())
    # the caller's dict is as it was, and our own keys still load
    assert "features.0.0.weight" in state_dict
    net_small.load_state_dict(net_small.state_dict())
    del state_dict["classifier.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier.bias"):
        net_small.load_state_dict(state_dict)


def test_mobilenetv3_builds_the_old_repository_s_net():
    assert sum(p.numel() for p in mobilenetv3().parameters()) == 2938368
    assert sum(p.numel() for p in mobilenetv3("large", 0.75).parameters()) == 3914944
    assert mobilenetv3(num_classes=7).classifier.out_features == 7
    with pytest.raises(InputError, match="mode=medium: not known; allowed: large, small"):
        mobilenetv3(mode="medium")

"""Maps that are scaled or add_shortcut: in place where nobody needs what they were."""

import pytest
import torch

from mobilenet_exp import build_model
from mobilenet_exp.models import layers
from mobilenet_exp.models.layers import add_shortcut, gated

NAMES = ["v2", "v3_small", "kuanwang_v3_small", "v4_conv_small", "v4_hybrid_medium"]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same_bits_where_maps_change_in_place(name, monkeypatch):
    model = build_model(name, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    given = images.clone()
    with torch.inference_mode():
        found = model(images)
        monkeypatch.setattr(layers, "_may_change", lambda *_: False)
        assert torch.equal(found, model(images))
    assert torch.equal(images, given)


@pytest.mark.parametrize("combine", [gated, lambda one, other: add_shortcut(other, one)])
def test_what_is_needed_again_is_not_changed(combine):
    one, other = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 1, 1)
    with torch.no_grad():
        assert combine(one, other).data_ptr() == one.data_ptr()
    half, learning, marked = one.bfloat16(), one.clone().requires_grad_(), one.clone()
    marked.is_int8 = True
    for kept in (half, learning, marked):
        before = kept.detach().clone()
        assert combine(kept, other).data_ptr() != kept.data_ptr()
        assert torch.equal(kept, before)
    before = one.clone()
    combine(one, other.clone().requires_grad_())
    assert torch.equal(one, before)

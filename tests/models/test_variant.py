"""How the same weights are run."""

from dataclasses import replace

import torch

from mobilenet_exp import build_model
from mobilenet_exp.models.variant import apply_variant


def test_a_variant_is_read_and_applied_with_torch_s_synchronised_batchnorm():
    """What `train.bn=sync` makes on GPUs; every save asks for the variant."""
    net = build_model("v2", width_mult=0.35)
    plain = net.variant
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert synced.variant == plain
    apply_variant(synced, replace(plain, bn_eps=0.5))
    assert synced.stem.bn.eps == 0.5

"""How the same weights are run."""

from dataclasses import replace

import torch

from mobilenet_exp import build_model
from mobilenet_exp.models.dialect import adopt


def test_a_dialect_is_read_and_adopted_with_torch_s_synchronised_batchnorm():
    """What `train.bn=sync` makes on GPUs; every save asks for the dialect."""
    net = build_model("v2", width_mult=0.35)
    plain = net.dialect
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert synced.dialect == plain
    adopt(synced, replace(plain, bn_eps=0.5))
    assert synced.stem.bn.eps == 0.5

"""A folded network in 8 bits, with scales from images of the data that it was trained on.

Weights have a scale for each channel: BatchNorm's, folded in, differ by orders of magnitude
from one channel of a depthwise convolution to the next. NNCF does it for ONNX and OpenVINO,
torchao with XNNPACK's own rules for ExecuTorch.
"""

import contextlib
import io
import logging
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_exp.core.libraries import library


def with_nncf(network: Any, batches: list[Tensor]) -> Any:
    """Quantise an ONNX or OpenVINO network; `batches` (N, 3, H, W) are what it is calibrated on."""
    nncf: Any = library("nncf", "int8", True)
    # it reports on each step
    logging.getLogger("nncf").setLevel(logging.ERROR)
    ranges: Any = library("nncf.quantization.range_estimator", "int8", True)
    dataset = nncf.Dataset(batches, lambda images: {"images": images.numpy()})
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            network,
            dataset,
            subset_size=len(batches),
            # V3's hard-swish has a tail below zero, whose scale may be asymmetric
            preset=nncf.QuantizationPreset.MIXED,
            # the mean of images' largest values, its own choice, cuts those of half the images:
            # answers of V1 on photos were off by 0.38 of the largest instead of 0.03
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX
            ),
        )


@torch.no_grad()
def with_torchao(
    model: nn.Module, images: Tensor, batches: list[Tensor], *, per_channel: bool = True
) -> nn.Module:
    """Quantise a network for XNNPACK; `images` have the shape that it is exported with.

    Without `per_channel` a convolution's weights share one scale.
    """
    pt2e: Any = library("torchao.quantization.pt2e.quantize_pt2e", "int8", True)
    name = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    rules: Any = library(name, "int8", True)
    config = rules.get_symmetric_quantization_config(is_per_channel=per_channel)
    quantizer = rules.XNNPACKQuantizer().set_global(config)
    prepared = pt2e.prepare_pt2e(torch.export.export(model, (images,)).module(), quantizer)
    for batch in batches:
        for part in batch.split(len(images)):
            if len(part) == len(images):
                prepared(part)
    return pt2e.convert_pt2e(prepared)

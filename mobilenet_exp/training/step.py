"""One update of the weights, from a batch to the optimizer's step. Read `update` first.

`wrap_model` puts around the network what its updates go through: DistributedDataParallel,
torch.compile, CUDA graphs. Evaluations and checkpoints use the network itself.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from mobilenet_exp.core.errors import (
    InputError,
    NonFiniteLossError,
    RunError,
    first_line,
)
from mobilenet_exp.machine.compute import Compute, autocast
from mobilenet_exp.training.state import TrainState

# updates skipped one after the other before a run counts as diverged
MAX_SKIPS = 20
# sides of a progressive training, each of which is compiled anew
MAX_SIDES = 64
STREAM_WARNING = "set_warn_on_accumulate_grad_stream_mismatch"


def update(state: TrainState, parts: tuple) -> None:
    """Make one update from the parts of its batch, and add its figures to the meter.

    An update whose gradients are not finite is left out where `train.on_nonfinite=skip`;
    NonFiniteLossError is raised after MAX_SKIPS of them in a row. That and a scaler wait for
    the device; nothing else here does.
    """
    config, meter, step = state.config.train, state.meter, state.step
    for group in state.optimizer.param_groups:
        group["lr"] = state.lr_at(step)
    # a bad batch spoils BatchNorm's statistics, and int8's ranges, before it is known to be bad
    kept = []
    if config.on_nonfinite == "skip":
        buffers = (state.fake_quantized or state.model).buffers()
        kept = [(buffer, buffer.clone()) for buffer in buffers]
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum, correct = 0, 0
    for number, (images, labels) in enumerate(parts):
        # dropout's masks follow from the seed, the step and the part alone; primes keep these apart
        part = state.world.rank * len(parts) + number
        torch.manual_seed(((config.seed * 1_000_003 + step) * 10_007 + part) % 2**63)
        # several processes exchange gradients once per update: with the last part
        is_last = number == len(parts) - 1
        with state.ddp.no_sync() if state.ddp and not is_last else nullcontext():
            loss, hits = forward_backward(state, images, labels)
        loss_sum, correct = loss_sum + loss * len(labels), correct + hits
    if optimizer_step(state):
        if state.average:
            state.average.update(step)
        meter.skipped_in_a_row = 0
        # from the CPU, where an epoch's sums begin, to the device
        meter.loss_sum = meter.loss_sum + loss_sum
        meter.correct = meter.correct + correct
        meter.num_images += sum(len(labels) for _, labels in parts)
        return
    for buffer, before in kept:
        buffer.copy_(before)
    meter.num_skipped += 1
    meter.skipped_in_a_row += 1
    if meter.skipped_in_a_row >= MAX_SKIPS:
        problem = f"{MAX_SKIPS} updates in a row, up to step {step}, were not finite"
        raise NonFiniteLossError(problem)


def forward_backward(state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Add the gradients of one part; return its mean loss and its number of right answers."""
    compute = state.compute
    images = images.to(compute.device, non_blocking=True, memory_format=compute.memory_format)
    labels = labels.to(compute.device, non_blocking=True)
    targets = labels
    if state.mixing:
        images, targets = state.mixing(images, labels, state.step)
    with autocast(compute.device, compute.precision, caches_weights=not state.uses_graphs):
        logits = state.forward(images)
        loss = state.loss_fn(logits, targets)
        if state.teacher:
            loss = state.teacher.join(loss, logits, images)
    part = loss / state.config.train.accumulate
    (state.scaler.scale(part) if state.scaler else part).backward()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def optimizer_step(state: TrainState) -> bool:
    """Clip the gradients and move the weights along them; return False for an update left out.

    With a scaler the weights stay where gradients overflow, too, and the loss's scale falls.
    Only where updates that are not finite are left out does this wait for the device.
    """
    config, is_good = state.config.train, True
    skips = config.on_nonfinite == "skip"
    if config.clip_grad_norm is not None or skips:
        if state.scaler:
            state.scaler.unscale_(state.optimizer)
        params = [each for each in state.model.parameters() if each.grad is not None]
        norm = nn.utils.clip_grad_norm_(params, config.clip_grad_norm or math.inf)
        # the same in every process: gradients have been exchanged
        is_good = not skips or math.isfinite(norm.item())
    if state.scaler:
        if is_good:
            state.scaler.step(state.optimizer)
        state.scaler.update()
    elif is_good:
        state.optimizer.step()
    return is_good


def set_training_mode(state: TrainState) -> None:
    """Put the network into training mode, except what is frozen."""
    if state.fake_quantized:
        state.fake_quantized.train()
    is_probe = state.config.train.trainable == "classifier"
    state.model.train(not is_probe)
    if is_probe and hasattr(state.model, "dropout"):
        state.model.dropout.train()
    if has_frozen_bn(state):
        for module in state.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def has_frozen_bn(state: TrainState) -> bool:
    """Return whether BatchNorm keeps its statistics: as asked, or as only the classifier learns."""
    train = state.config.train
    return train.bn == "frozen" or train.trainable == "classifier"


def gradient_norm(model: nn.Module) -> float:
    """Return the norm of the last update's gradients, after clipping; waits for the device."""
    grads = [each.grad for each in model.parameters() if each.grad is not None]
    return nn.utils.get_total_norm(grads).item() if grads else math.nan


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights and statistics are finite numbers."""
    tensors = [each for each in model.state_dict().values() if each.is_floating_point()]
    return math.isfinite(nn.utils.get_total_norm(tensors).item())


def reestimate_bn(model: nn.Module, batches: Iterable, compute: Compute) -> None:
    """Replace BatchNorm's running statistics by plain averages over `batches`.

    With the papers' momentum (0.01 and less) running averages need thousands of steps
    to settle; without this, a short run that has learned would evaluate at chance.
    """
    with autocast(compute.device, compute.eval_precision):
        update_bn(batches, model, compute.device)


def wrap_model(state: TrainState) -> None:
    """Put around the network what its updates go through; every process calls this.

    Raises InputError for CUDA graphs that cannot be had.
    """
    run, sampler = state.config.run, state.loaders.sampler
    sides = {sampler.side_at(epoch) for epoch in range(1, state.config.train.epochs + 1)}
    state.uses_graphs = can_use_graphs(state, sides)
    if state.world.size > 1:
        # BatchNorm's statistics are shared before they count, not at each forward pass
        # (older torch knows the second name alone)
        known = inspect.signature(DistributedDataParallel).parameters
        names = [each for each in ("forward_sync_buffers", "broadcast_buffers") if each in known]
        state.ddp = state.forward = DistributedDataParallel(
            state.fake_quantized or state.model,
            gradient_as_bucket_view=True,
            # every weight takes part in every update; the first one must have an exchange
            static_graph=not run.compile and state.config.train.accumulate == 1,
            **{names[0]: False},
        )
    if run.compile:
        # or torch would silently go on without graphs
        is_must = state.uses_graphs and run.cuda_graphs.lower() == "true"
        torch._inductor.config.triton.cudagraph_or_error = is_must
        mode = "reduce-overhead" if state.uses_graphs else "default"
        state.forward = compiled(state.forward, mode)
    elif state.uses_graphs:
        state.forward = graphed(state, sampler.part_size, *sides)


def can_use_graphs(state: TrainState, sides: set[int]) -> bool:
    """Resolve `run.cuda_graphs`. Raises InputError where it is true and cannot be."""
    wanted = state.config.run.cuda_graphs.lower()
    if wanted == "false":
        return False
    problems = {
        "needs a CUDA device": state.compute.device.type != "cuda",
        "needs a training in one process": state.world.size > 1,
        "needs train.quantise=null": state.fake_quantized is not None,
        "needs train.accumulate=1": state.config.train.accumulate > 1,
        "needs images of one side: data.progressive_from=null": len(sides) > 1,
    }
    problem = next((text for text, is_so in problems.items() if is_so), None)
    if problem and wanted == "true":
        raise InputError("run.cuda_graphs", wanted, problem)
    return problem is None


def compiled(network: Callable, mode: str) -> Callable[[Tensor], Tensor]:
    """Return the network's forward, compiled for each shape at its first pass.

    Raises a RunError then where it cannot be.
    """
    torch._dynamo.config.recompile_limit = MAX_SIDES
    # or torch would go on without, and say nothing
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    forward = torch.compile(network, dynamic=False, mode=mode)

    def call(images: Tensor) -> Tensor:
        try:
            return forward(images)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause: BaseException = error
            while inner := getattr(cause, "inner_exception", None) or cause.__cause__:
                cause = inner
            problem = f"the network cannot be compiled: {first_line(cause, 200)}"
            refusal = RunError(f"{problem}; run.compile=false trains without")
            raise refusal from error

    return call


class Recorded(nn.Module):
    """The network for recording a graph; the network's own forward is not changed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def graphed(state: TrainState, batch_size: int, side: int) -> Callable[[Tensor], Tensor]:
    """Record the kernels of a forward and a backward pass, to be launched as one from then on.

    The passes that are recorded change no statistics.
    """
    set_training_mode(state)
    kept = [buffer.clone() for buffer in state.model.buffers()]
    compute = state.compute
    images = torch.randn(batch_size, 3, side, side, device=compute.device)
    images = images.to(memory_format=compute.memory_format)
    with autocast(compute.device, compute.precision, caches_weights=False):
        network = torch.cuda.make_graphed_callables(Recorded(state.model), (images,))
    for buffer, before in zip(state.model.buffers(), kept, strict=True):
        buffer.copy_(before)
    # what was recorded adds gradients up on its own stream, which backward passes wait for:
    # newer torch warns of that
    if hasattr(torch.autograd.graph, STREAM_WARNING):
        getattr(torch.autograd.graph, STREAM_WARNING)(False)
    return network

"""What stands around the network while it learns: exchange, compiling, CUDA graphs.

Evaluations and checkpoints use the network itself.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError, RunError, first_line, known_to_all
from mobilenet_exp.machine.arithmetic import autocast
from mobilenet_exp.training.engine import Learner, set_training_mode

# sides of a progressive training, each of which is compiled anew
MOST_SIDES = 64
WARNS_OF_STREAMS = "set_warn_on_accumulate_grad_stream_mismatch"


def wrap(learner: Learner, config: Config, processes: int, sides: set[int], batch: int) -> None:
    """Put around a learner's network what its configuration asks for.

    `batch` images of one of `sides` go through it together. Every process calls this.
    Raises InputError for CUDA graphs that cannot be had.
    """
    run = config.run
    learner.uses_graphs = uses_graphs(config, learner, processes, sides)
    if processes > 1:
        whole = learner.rounding or learner.model
        learner.exchange = exchanging(whole, is_static=not run.compile, config=config)
        learner.wrapped = learner.exchange
    if run.compile:
        mode = "reduce-overhead" if learner.uses_graphs else "default"
        # or torch would go on without graphs that are asked for
        is_must = learner.uses_graphs and run.cuda_graphs.lower() == "true"
        torch._inductor.config.triton.cudagraph_or_error = is_must
        learner.wrapped = compiled(learner.wrapped, mode)
    elif learner.uses_graphs:
        learner.wrapped = graphed(learner, batch, *sides)


def exchanging(model: nn.Module, *, is_static: bool, config: Config) -> DistributedDataParallel:
    """Let all processes exchange gradients as they come."""
    # statistics are shared before they count, not at each forward pass
    # (older torch knows the second name alone)
    known = inspect.signature(DistributedDataParallel).parameters
    names = [each for each in ("forward_sync_buffers", "broadcast_buffers") if each in known]
    return DistributedDataParallel(
        model,
        gradient_as_bucket_view=True,
        # every weight takes part in every update; the first one must have an exchange
        static_graph=is_static and config.train.accumulate == 1,
        **{names[0]: False},
    )


def uses_graphs(config: Config, learner: Learner, processes: int, sides: set[int]) -> bool:
    """Resolve `run.cuda_graphs`. Raises InputError where it is true and cannot be."""
    wanted = config.run.cuda_graphs.lower()
    if wanted == "false":
        return False
    problems = {
        "needs a CUDA device": learner.device.type != "cuda",
        "needs a training in one process": processes > 1,
        "needs train.quantise=null": learner.rounding is not None,
        "needs train.accumulate=1": learner.accumulate > 1,
        "needs images of one side: data.progressive_from=null": len(sides) > 1,
    }
    for problem in (words for words, is_so in problems.items() if is_so):
        if wanted == "true":
            # all processes decide alike
            raise known_to_all(InputError("run.cuda_graphs", wanted, problem))
        return False
    return True


def compiled(network: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    """Return the network's forward, compiled for each shape at its first pass.

    Raises a RunError then where it cannot be.
    """
    torch._dynamo.config.recompile_limit = MOST_SIDES
    # or torch would go on without, and say nothing
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    forward = torch.compile(network, dynamic=False, mode=mode)

    def call(images: Tensor) -> Tensor:
        try:
            return forward(images)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            problem = f"the network cannot be compiled: {_reason(error)}"
            refusal = RunError(f"{problem}; run.compile=false trains without")
            # all processes compile the same
            raise known_to_all(refusal) from error

    return call


def _reason(error: BaseException) -> str:
    """Return the first line of what is at the bottom of an error."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    return first_line(error, 200)


class _Recorded(nn.Module):
    """The network as what a graph is recorded of: its own forward stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def graphed(learner: Learner, batch: int, side: int) -> Callable[[Tensor], Tensor]:
    """Record the kernels of a forward and a backward pass, to be launched as one from then on.

    The passes that are recorded change no statistics.
    """
    set_training_mode(learner)
    kept = [buffer.clone() for buffer in learner.model.buffers()]
    images = torch.randn(batch, 3, side, side, device=learner.device)
    images = images.to(memory_format=learner.memory_format)
    with autocast(learner.device, learner.precision, caches_weights=False):
        network = torch.cuda.make_graphed_callables(_Recorded(learner.model), (images,))
    for buffer, before in zip(learner.model.buffers(), kept, strict=True):
        buffer.copy_(before)
    # what was recorded adds gradients up on its own stream, which backward passes wait for:
    # newer torch warns of that
    if hasattr(torch.autograd.graph, WARNS_OF_STREAMS):
        getattr(torch.autograd.graph, WARNS_OF_STREAMS)(False)
    return network

"""A training run, from top to bottom.

`train` sets this process up, and either returns the results of a run that is done or builds the
data, the network and what trains it; resumes; and runs the epochs. The functions below it come
in the order in which they are called. One update of the weights is in `step`.
"""

import gc
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenet_exp.config.identity import run_name
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.console import Show
from mobilenet_exp.core.errors import InputError, NonFiniteLossError, RunError
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.core.text import duration, examples, plural
from mobilenet_exp.data.loaders import (
    BAD_IMAGE_ADVICE,
    LoaderOptions,
    Loaders,
    build_loaders,
)
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.datasets.images import name_of
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.predict import predict
from mobilenet_exp.machine.compute import (
    Compute,
    Precision,
    keeping_threads,
    select_compute,
    set_determinism,
    set_up,
)
from mobilenet_exp.machine.distributed import World, joined
from mobilenet_exp.machine.launch import launch
from mobilenet_exp.machine.launch_env import this_rank
from mobilenet_exp.machine.lock import locked
from mobilenet_exp.machine.memory import peak_memory
from mobilenet_exp.machine.preemption import listening
from mobilenet_exp.models.build import config_model
from mobilenet_exp.models.fake_quantized import FakeQuantized, check_device, update_qparams
from mobilenet_exp.models.variant import apply_config, describe_variant
from mobilenet_exp.training import step
from mobilenet_exp.training.checkpointing import Checkpointer, check_finite, resume
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.losses import LOSSES
from mobilenet_exp.training.optim import build_optimizer
from mobilenet_exp.training.reporting import (
    SilentReporter,
    load_results,
    print_results,
    reporting,
)
from mobilenet_exp.training.schedule import build_schedule
from mobilenet_exp.training.state import Pace, TrainMeter, TrainState
from mobilenet_exp.training.synced_bn import synchronise_bn
from mobilenet_exp.weights.checkpoint import load_latest


def train(
    config: Config, *, overrides: tuple[str, ...] | None = None, group: str | None = None
) -> dict[str, Any]:
    """Train the configured network, or resume it, or return its result if it is done.

    Everything goes to `run.root/run_name(config)`; `overrides`, those of the command,
    become W&B's tags and `group` names the sweep. Returns the content of results.json, in
    processes other than the first an empty dict. Raises InputError before anything is
    written, RunError for a run that cannot continue, and Preempted once a run that was asked
    to stop has saved.
    """
    if config.train.bn == "frozen" and not (config.weights or config.run.smoke):
        problem = "keeps the statistics of given weights, so it needs weights=..."
        raise InputError("train.bn", "frozen", problem)
    if config.train.trainable == "classifier" and not (config.weights or config.run.smoke):
        problem = "trains only the classifier, so it needs pretrained weights=..."
        raise InputError("train.trainable", "classifier", problem)
    if config.run.devices > 1 and this_rank().size > 1:
        problem = "torchrun or srun has started the processes, so it must be 1"
        raise InputError("run.devices", config.run.devices, problem)
    import_modules(config.run.imports)
    for name in config.run.metrics:
        metrics.METRICS.get(name)
    folder = Path(config.run.root) / run_name(config)
    # with several ranks the main one looks, once they have joined
    if this_rank().size == 1 and (results := load_results(config, folder)):
        print_results(results, config, folder)
        return results
    if config.run.devices == 1:
        return train_here(config, folder, overrides, group)
    return launch(
        train_here,
        (config, folder, overrides, group),
        processes=config.run.devices,
        max_restarts=config.run.max_restarts,
    )


@keeping_threads()
def train_here(
    config: Config, folder: Path, overrides: tuple[str, ...] | None, group: str | None
) -> dict[str, Any]:
    """Train in this process, one of as many as were launched."""
    checkpoints = folder / "checkpoints"
    # again: a rank that was launched is a new process
    import_modules(config.run.imports)
    # fake quantisation needs float32
    half = config.train.quantise is None
    compute, lines = set_up(config.run, half=half, leaves_busy_cores=this_rank().size == 1)
    set_determinism(config.run.deterministic)
    with listening() as stop, joined(compute.device) as world:
        if world.size > 1:
            world.check_same("run.root", config.run.root, f"the run {folder.name}")
            if results := world.on_main(lambda: load_results(config, folder)):
                if world.is_main:
                    print_results(results, config, folder)
                return results if world.is_main else {}
        with locked(folder) if world.is_main and config.run.lock else nullcontext():
            loaders = build_data(config, compute, world)
            # after the loading processes have started, so that they hold no part of it
            checkpoint, damage = world.on_main(lambda: load_latest(checkpoints))
            state = build_state(config, compute, world, loaders, checkpoint)
            if world.size > 1:
                world.check_same("data.root", config.data.root, describe_images(loaders))
            if checkpoint:
                notes, threads_note = resume(state, checkpoint, checkpoints / "last.pt")
                lines = [*([threads_note] if threads_note else lines), *damage, *notes]
            del checkpoint
            # after resuming: a checkpoint says how the network computes
            step.wrap_model(state)
            reports: AbstractContextManager = nullcontext(SilentReporter())
            if world.is_main:
                reports = reporting(state, folder, overrides, group, lines)
            # checkpoints are written beside the training, and waited for at its end
            with reports as reporter, ThreadPoolExecutor(1, "writer") as writer:
                train_epochs(state, Checkpointer(state, checkpoints, stop, writer), reporter)
                return reporter.close()


def build_data(config: Config, compute: Compute, world: World) -> Loaders:
    """Build the loaders, and start their processes before this one holds memory."""
    loaders = build_loaders(
        config.data,
        seed=config.train.seed,
        epochs=config.train.epochs,
        accumulate=config.train.accumulate,
        rank=world.rank,
        processes=world.size,
        options=LoaderOptions(
            compute.device, config.run.workers, config.run.image_timeout, world.ranks_on_machine
        ),
    )
    if loaders.train.workers:
        # else a collection, here or there, copies all memory that these processes share
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        loaders.train.start_workers()
        loaders.val.start_workers()
    return loaders


def build_state(
    config: Config,
    compute: Compute | None = None,
    world: World | None = None,
    loaders: Loaders | None = None,
    checkpoint: dict[str, Any] | None = None,
) -> TrainState:
    """Build everything a run needs from its config, weights seeded by `train.seed`.

    One that has a `checkpoint` takes its stem's stride from it, and needs no `weights`.
    """
    compute = compute or select_compute(config.run, half=config.train.quantise is None)
    world, train = world or World(), config.train
    loaders = loaders or build_data(config, compute, world)
    num_classes = config.model.num_classes or len(loaders.classes)
    if num_classes < len(loaders.classes):
        problem = f"must be at least the {len(loaders.classes)} classes of {config.data.name}"
        raise InputError("model.num_classes", num_classes, problem)
    torch.manual_seed(train.seed)
    model, notes = build_network(config, num_classes, checkpoint)
    stem_stride = getattr(model, "stem_stride", config.model.stem_stride)
    config = replace(config, model=replace(config.model, stem_stride=stem_stride))
    model = model.to(compute.device, memory_format=compute.memory_format)
    if train.trainable == "classifier":
        if not hasattr(model, "classifier"):
            problem = f"needs a network with a `classifier`, which {config.model.name} has not"
            raise InputError("train.trainable", train.trainable, problem)
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    if train.bn == "sync" and world.size > 1:
        model = synchronise_bn(model, compute.device)
    average = None
    if train.ema_decay is not None:
        average = Average(
            model, decay=train.ema_decay, every=train.ema_every, warmup=train.ema_warmup
        )
    teacher = None
    if config.distill.teacher:
        # few runs need what reads weights of any origin
        from mobilenet_exp.training.distillation import build_teacher

        teacher = build_teacher(config, loaders.classes, num_classes).to(compute.device)
    fake_quantized = None
    if train.quantise:
        check_device(compute.device)
        fake_quantized = FakeQuantized(model, weight_bits=train.int8_weights).to(compute.device)
    steps_per_epoch, mixing = loaders.sampler.num_updates, None
    if config.data.mixes:
        mixing = Mixing(
            config.data,
            num_classes,
            train.seed,
            epochs=train.epochs,
            steps_per_epoch=steps_per_epoch,
        )
    if loaders.others:
        count = plural(len(loaders.others), "file")
        notes = [*notes, f"{count} passed over, no images: {examples(loaders.others)}"]
    return TrainState(
        config,
        compute,
        world,
        loaders,
        num_classes,
        model=model,
        forward=fake_quantized or model,
        optimizer=build_optimizer(model, **asdict(config.optimizer)),
        lr_at=build_schedule(
            **asdict(config.schedule),
            lr=config.optimizer.lr,
            epochs=train.epochs,
            steps_per_epoch=steps_per_epoch,
            seed=train.seed,
        ),
        loss_fn=LOSSES.get(train.loss)(train.label_smoothing),
        mixing=mixing,
        teacher=teacher,
        average=average,
        fake_quantized=fake_quantized,
        scaler=(
            torch.amp.GradScaler(compute.device.type)
            if compute.precision is Precision.FLOAT16
            else None
        ),
        notes=tuple(notes),
    )


def build_network(
    config: Config, num_classes: int, checkpoint: dict[str, Any] | None
) -> tuple[nn.Module, list[str]]:
    """Build the network, with `weights` in it where a new run starts from some.

    Returns lines about these, too: what they are, and what is unlike in the run's data.
    """
    if checkpoint:
        stem_stride = checkpoint["config"]["model"]["stem_stride"] or 2
        return config_model(config.model, num_classes, stem_stride=stem_stride), []
    if not config.weights:
        return config_model(config.model, num_classes), []
    # few runs need it
    from mobilenet_exp.weights.load import weights_and_model

    weights, model = weights_and_model(
        config.weights,
        config.model,
        num_classes,
        like=config.weights_like,
        key=config.weights_key,
    )
    left_out = weights.into(model, new_classifier=True)
    apply_config(model, config.model)
    notes = [f"starts from {weights.origin} ({weights.layout.title}): {describe_variant(model)}"]
    theirs, ours = weights.preprocessing, config.data
    if (list(theirs.mean), list(theirs.std)) != (list(ours.mean), list(ours.std)):
        notes.append(
            f"the weights were trained with mean {theirs.mean} and std {theirs.std}; "
            f"data.mean is {ours.mean}, data.std {ours.std}"
        )
    return model, notes + left_out


def describe_images(loaders: Loaders) -> str:
    """Say what is about to be trained on, which must be the same in all ranks."""
    counts = f"{len(loaders.train_images)} + {len(loaders.val_images)} images"
    return f"{counts} of {plural(len(loaders.classes), 'class')}; {loaders.fingerprint()}"


def train_epochs(state: TrainState, checkpointer: Checkpointer, reporter: SilentReporter) -> None:
    """Run the remaining epochs, going back to a checkpoint where `train.on_nonfinite` says so.

    Raises NonFiniteLossError for a run that diverged, Preempted for one that was asked to
    stop and has saved.
    """
    if state.config.train.on_nonfinite == "rollback" and state.step == 0:
        # what the run can go back to
        checkpointer.save()
    while state.progress.epoch < state.config.train.epochs:
        try:
            train_epoch(state, checkpointer, reporter)
        except NonFiniteLossError as error:
            reporter.line(f"{error}; {checkpointer.roll_back(error)}")


def train_epoch(state: TrainState, checkpointer: Checkpointer, reporter: SilentReporter) -> None:
    """Run one epoch, or what is left of it: updates, evaluation, log, checkpoint."""
    for _ in make_updates(state, reporter.show):
        reporter.update()
        checkpointer.after_update()
    ended = time.perf_counter()
    check_finite(state)
    started = time.perf_counter()
    # a GPU has now done what it was given
    state.meter.seconds += started - ended
    state.progress.seconds += started - ended
    ended_epoch = finish_epoch(state)
    reporter.epoch(*ended_epoch)
    checkpointer.after_epoch(is_best=ended_epoch.best is not None)
    state.pace.closing = time.perf_counter() - started


def make_updates(state: TrainState, show: Show) -> Iterator[None]:
    """Make the updates that are left of the epoch, and yield after each.

    `show(batches, label, total)` passes batches on and may draw a bar. Images,
    augmentation, mixing and dropout follow from the seed and the step alone.
    """
    progress, sampler = state.progress, state.loaders.sampler
    step.set_training_mode(state)
    state.pace = Pace(closing=state.pace.closing)

    def label() -> str:
        epoch = f"epoch {progress.epoch + 1}/{state.config.train.epochs}"
        left = f", {duration(state.time_left()[1])} left of the run"
        return epoch + (left if state.pace.updates else "")

    sampler.set_position(progress.epoch + 1, progress.update)
    batches = show(train_batches(state), label, len(sampler))
    started = time.perf_counter()
    # so many batches of the loader are the parts of one update
    for parts in zip(*[iter(batches)] * state.config.train.accumulate, strict=True):
        step.update(state, parts)
        if state.fake_quantized:
            # all round alike, whichever process's ranges are saved
            state.world.average_buffers(state.fake_quantized.ranges)
            if state.world.size > 1:
                update_qparams(state.fake_quantized.ranges.state_dict())
        progress.update += 1
        if progress.update == sampler.num_updates:
            state.meter.grad_norm = step.gradient_norm(state.model)
        now = time.perf_counter()
        for spent in (state.meter, state.pace, progress):
            spent.seconds += now - started
        state.pace.updates += 1
        started = now
        yield


def train_batches(state: TrainState) -> Iterator[list[Tensor]]:
    """Pass on the training batches that are left of the epoch, and note what was waited for."""
    wanted_at = time.perf_counter()
    for *tensors, batch in state.loaders.train:
        state.meter.left_out |= batch.left_out
        state.meter.num_unturned += batch.num_unturned
        waited = time.perf_counter() - wanted_at
        state.pace.waiting += waited
        state.meter.waiting += waited
        yield tensors
        wanted_at = time.perf_counter()


class EndedEpoch(NamedTuple):
    """An epoch's metrics, and the answers to the validation images if it is the best so far."""

    metrics: dict[str, float]
    best: Predictions | None


def finish_epoch(state: TrainState) -> EndedEpoch:
    """Evaluate after an epoch's updates; return its metrics and, if it is the best, its answers.

    With an average of the weights, it is the average's accuracy that counts. Between two
    evaluations (`train.eval_every`) there are figures of the updates alone.
    """
    started = time.perf_counter()
    progress, train = state.progress, state.config.train
    figures = train_metrics(state)
    scores: dict[str, float] | None = None
    answers: Predictions | None = None
    if (progress.epoch + 1) % train.eval_every == 0 or progress.epoch + 1 == train.epochs:
        answers = answer_images(state, state.model, is_last=not state.average)
        scores = metrics.scores(answers, state.config.run.metrics)
        figures |= {f"val/{key}": value for key, value in scores.items()}
        if state.average:
            answers = answer_images(state, state.average.model, is_last=True)
            scores = metrics.scores(answers, state.config.run.metrics)
            figures |= {f"val_ema/{key}": value for key, value in scores.items()}
    # images that could not be read or lie on their side, of training and evaluation
    noted = state.world.gather((state.meter.left_out, state.meter.num_unturned))
    left_out = {name: reason for names, _ in noted for name, reason in names.items()}
    if state.config.data.on_bad_image == "skip":
        figures["data/num_left_out"] = len(left_out)
        progress.left_out |= dict(sorted(left_out.items()))
    if num_unturned := sum(count for _, count in noted):
        figures["data/num_unturned"] = num_unturned
    figures |= {f"system/{key}": value for key, value in peak_memory(state.compute.device).items()}
    state.meter = TrainMeter()
    progress.seconds += time.perf_counter() - started
    is_best = progress.complete_epoch(scores)
    return EndedEpoch(figures, answers if is_best else None)


def train_metrics(state: TrainState) -> dict[str, float]:
    """Return the figures of the epoch's updates, over all processes."""
    meters = state.world.gather(state.meter.state_dict())
    num_images = sum(each["num_images"] for each in meters)
    if not num_images and not state.progress.rollbacks:
        raise NonFiniteLossError("no update of the epoch was finite")
    figures: dict[str, Any] = {"train/lr": state.lr_at(max(state.step - 1, 0))}
    # there are none where the epoch's last update made the run go back to its start
    if num_images:
        seconds = max(meters[0]["seconds"], 1e-9)
        figures |= {
            "train/loss": sum(each["loss_sum"].item() for each in meters) / num_images,
            "train/top1": 100 * sum(each["correct"].item() for each in meters) / num_images,
            "speed/images_per_s": num_images / seconds,
            "speed/waiting_percent": 100 * meters[0]["waiting"] / seconds,
        }
    norm = state.meter.grad_norm
    if norm is not None and math.isfinite(norm):
        figures["train/grad_norm"] = norm
    if state.config.train.on_nonfinite == "skip":
        figures["train/num_skipped"] = meters[0]["num_skipped"]
    return figures


def answer_images(state: TrainState, model: nn.Module, *, is_last: bool) -> Predictions:
    """Let one network answer every validation image once, shared among all processes.

    `is_last`: no training images are needed any more before the next epoch's.
    """
    world, loaders, compute = state.world, state.loaders, state.compute
    progress, train = state.progress, state.config.train
    network = state.fake_quantized.around(model) if state.fake_quantized else model
    if train.precise_bn_batches and not step.has_frozen_bn(state):
        loaders.sampler.set_position(progress.epoch + 1)
        torch.manual_seed(train.seed)

        def batches() -> Iterator[list[Tensor]]:
            for *tensors, batch in loaders.train.first(train.precise_bn_batches):
                state.meter.left_out |= batch.left_out
                yield tensors

        step.reestimate_bn(network, batches(), compute)
        world.average_buffers(model)
    # the main rank's network is the one that is scored
    world.broadcast_buffers(network)
    if is_last and progress.epoch + 1 < train.epochs:
        # the next epoch's first images are read while this one is scored
        loaders.sampler.set_position(progress.epoch + 2)
        loaders.train.begin()
    answers = predict(
        network,
        val_batches(state),
        compute.device,
        precision=compute.eval_precision,
        first=world.rank,
        step=world.size,
    )
    merged = metrics.merge(world.gather(answers))
    if not len(merged.index):
        raise RunError("no validation image can be read")
    return merged


def val_batches(state: TrainState) -> Iterator:
    """Pass the validation batches on; an image that cannot be read ends the run or is noted."""
    images, position = state.loaders.val_images, state.world.rank
    for tensors, labels, batch in state.loaders.val:
        for label, note in zip(batch.labels, batch.notes, strict=True):
            if label < 0:
                name = name_of(images, position)
                if state.config.data.on_bad_image == "fail":
                    problem = f"validation image {name} {note}; {BAD_IMAGE_ADVICE}"
                    raise RunError(f"{state.config.data.root}: {problem}")
                state.meter.left_out[name] = note
            position += state.world.size
        yield tensors, labels

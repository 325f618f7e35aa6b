"""Any recipe made small enough to run in seconds, on noise, to see that it runs."""

from dataclasses import replace
from pathlib import Path

from mobilenet_exp.config.schema import Config

# pixels of the noise images
SIDE = 64


def shrunk(config: Config) -> Config:
    """Return a config cut down to seconds on noise, all its parts in use.

    Weights to start from are left out where their file does not exist.
    """
    data, train = config.data, config.train
    # what a batch is cut into, and mixup's pairs
    parts = 2 * train.accumulate * config.run.devices
    batch_size = max(8 // parts, 1) * parts
    has_weights = config.weights is not None and Path(config.weights).is_file()
    return replace(
        config,
        data=replace(
            data,
            name="fake",
            root=None,
            labels=None,
            val_share=None,
            batch_size=batch_size,
            resolution=SIDE,
            train_resolution=data.train_resolution and SIDE // 2,
            progressive_from=data.progressive_from and SIDE // 2,
            mix_off_epochs=min(data.mix_off_epochs, 1),
            args={"num_images": 4 * parts + 8, "num_classes": 10},
        ),
        # smaller batches take smaller steps, as large ones take larger
        optimizer=replace(
            config.optimizer,
            lr=config.optimizer.lr * min(batch_size / data.batch_size, 1.0),
        ),
        schedule=replace(
            config.schedule,
            warmup_epochs=min(config.schedule.warmup_epochs, 0.5),
            cooldown_epochs=min(config.schedule.cooldown_epochs, 0.5),
        ),
        train=replace(train, epochs=2, precise_bn_batches=min(train.precise_bn_batches, 1)),
        weights=config.weights if has_weights else None,
        weights_like=None,
        weights_key=None,
        run=replace(config.run, workers=0),
    )

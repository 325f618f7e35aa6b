"""A word of a command that would have no effect is refused, with what it needs."""

from dataclasses import fields, is_dataclass, replace

import pytest

from mobilenet_exp import compose
from mobilenet_exp.cli import PROGRAMS
from mobilenet_exp.config.convert import check_effects
from mobilenet_exp.core.errors import InputError

FOLDER = ("data=imagefolder", "data.root=x")
# of each program: a word, and words with which it has an effect
WORDS = {
    "train": {
        "data.root=x": ("data=imagefolder",),
        "data.download=true": ("data=cifar10", "data.root=x"),
        "data.exif=apply": FOLDER,
        "data.on_bad_image=skip": FOLDER,
        "data.val_seed=3": (*FOLDER, "data.val_share=0.2"),
        "data.min_crop_area=0.3": ("data.augment=inception",),
        "data.erase_mode=pixel": ("data.random_erase=0.2",),
        "data.mix_prob=0.5": ("data.cutmix=1",),
        "data.mix_off_epochs=1": ("data.mixup=0.2",),
        "data.cutmix_share=0.3": ("data.mixup=0.2", "data.cutmix=1"),
        "optimizer.decay_norm_and_bias=true": ("optimizer.weight_decay=1e-4",),
        "optimizer.decay_depthwise=false": ("optimizer.weight_decay=1e-4",),
        "schedule.warmup_from=0.1": ("schedule.warmup_epochs=2",),
        "schedule.counts_warmup=true": ("schedule.warmup_epochs=2",),
        "train.ema_every=2": ("train.ema_decay=0.9",),
        "train.ema_warmup=false": ("train.ema_decay=0.9",),
        "train.int8_weights=8": ("train.quantise=int8",),
        "weights_like=torchvision:IMAGENET1K_V2": ("weights=x",),
        "weights_key=model": ("weights=x",),
        "run.max_restarts=3": ("run.devices=2",),
        "run.image_timeout=5": FOLDER,
    },
    "eval": {
        "data.root=x": ("data=imagenet",),
        "data.download=true": ("data=food101", "data.root=x"),
        "data.exif=apply": ("data=photos", "data.root=x"),
        "data.val_seed=3": (*FOLDER, "data.val_share=0.2"),
        "data.on_bad_image=fail": FOLDER,
        "ema=false": ("checkpoint=x",),
        "weights_like=torchvision:IMAGENET1K_V2": ("weights=x",),
        "weights_key=model": ("weights=x",),
        "run.image_timeout=5": FOLDER,
    },
    "bench": {},
    "pack": {
        "data.root=x": ("data=imagefolder",),
        "data.download=true": ("data=food101", "data.root=x"),
        "data.exif=apply": FOLDER,
        "data.val_seed=3": (*FOLDER, "data.val_share=0.2"),
        "quality=80": (*FOLDER, "side=256"),
    },
    "export": {
        "data.root=x": ("int8=true", *FOLDER),
        "data.download=true": ("int8=true", "data=food101", "data.root=x"),
        "data.exif=apply": ("int8=true", *FOLDER),
        "data.val_seed=3": ("int8=true", *FOLDER, "data.val_share=0.2"),
        "data.on_bad_image=fail": ("int8=true", *FOLDER),
        "int8_weights=8": ("int8=true",),
        "calibration_images=8": ("int8=true",),
        "ema=false": ("checkpoint=x",),
        "weights_like=torchvision:IMAGENET1K_V2": ("weights=x",),
        "weights_key=model": ("weights=x",),
    },
}
# words without which a key has an effect, where that is not the default's
WITHOUT = {"model.stem_stride=1": ("model=timm", "model.args.arch=lcnet_035")}
for _program in ("train", "eval", "export"):
    WORDS[_program]["model.stem_stride=1"] = ("model=v2",)
COMMON = {
    "train": ("optimizer.weight_decay=0", "schedule.warmup_epochs=0"),
    "eval": ("data=digits",),
    "pack": ("out=x", "data=fake"),
    "export": ("data=digits",),
}


def _needing(schema: type, prefix: str = ""):
    for entry in fields(schema):
        if is_dataclass(entry.type):
            yield from _needing(entry.type, f"{prefix}{entry.name}.")
        elif "need" in entry.metadata:
            yield f"{prefix}{entry.name}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_that_needs_another_is_refused_without_and_taken_with_it(program):
    words, common = WORDS[program], COMMON.get(program, ())
    assert sorted(word.partition("=")[0] for word in words) == sorted(
        _needing(PROGRAMS[program].schema)
    )
    for word, with_what in words.items():
        key = word.partition("=")[0]
        with pytest.raises(InputError, match=f"^{key}=.*: has no effect here; it needs ") as found:
            compose(*common, *WITHOUT.get(word, ()), word, program=program)
        assert "\n" not in str(found.value)
        compose(*common, *with_what, word, program=program)


def test_recipes_and_defaults_may_carry_what_has_no_effect():
    """torchvision's newer recipe names the average's steps; without an average they lie still."""
    config = compose("experiment=torchvision_v2_new", "train.ema_decay=null", "data.root=x")
    assert config.train.ema_every == 32
    # a default that is said is no mistake
    assert compose("data.mix_prob=1.0", "data.root=null").data.mix_prob == 1.0


def test_a_sweep_may_try_a_key_with_and_without_what_it_needs():
    words = ("data.mixup=0", "data.mix_prob=0.5")
    config = compose(words[0])
    config = replace(config, data=replace(config.data, mix_prob=0.5))
    check_effects(config, words, ["data.mixup"])
    with pytest.raises(InputError, match=r"data.mix_prob=0.5: has no effect here"):
        check_effects(config, words[1:], ["data.mix_prob"])

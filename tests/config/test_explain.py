"""Bad words and bad files are answered in one line that names them."""

import programs
import pytest

from mobilenet_exp import compose
from mobilenet_exp.core.errors import InputError


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model.widht_mult=1", "model.widht_mult=1: no such key; did you mean model.width_mult?"),
        ("+model.widht=1", "model.widht=1: no such key"),
        ("+foo=1", "foo=1: no such key; allowed in the config: model, optimizer"),
        ("optimzer=sgd", "optimzer=sgd: no such key; did you mean optimizer?"),
        ("lr=0.1", "lr=0.1: no such key; did you mean optimizer.lr?"),
        ("epochs=3", "epochs=3: no such key; did you mean train.epochs?"),
        ("model=v9", "model=v9: not known; allowed: kuanwang_v3_large, kuanwang_v3_small"),
        ("model=3", "model=3: must be the name of an option"),
        ("train=3", "train=3: must be the name of an option"),
        ("experiment=nope", "experiment=nope: not known; allowed: dli14_v2"),
        ("model.width_mult=abc", "model.width_mult=abc: must be a number"),
        ("train.epochs=1.5", "train.epochs=1.5: must be a whole number"),
        ("data.download=7.5", "data.download=7.5: must be true or false"),
        ("model.width_mult=0", "model.width_mult=0.0: must be a number from 0.01 to 16"),
        ("model.width_mult=nan", "model.width_mult=nan: must be a number from 0.01 to 16"),
        (
            "model.width_mult=1,2",
            "model.width_mult=1,2: several values are a sweep",
        ),
        ("train.epochs=0", "train.epochs=0: must be a whole number from 1"),
        ("data.resolution=31", "data.resolution=31: must be a whole number of pixels from 32"),
        ("run.device=tpu", "run.device=tpu: not known; allowed: auto, cpu, cuda, mps"),
        (
            "run.precision=half",
            "run.precision=half: not known; allowed: auto, float32, tf32, bf",
        ),
        ("run.threads=0", "run.threads=0: must be a whole number from 1"),
        ("run.wandb=maybe", "run.wandb=maybe: not known; allowed: auto, online"),
        ("data.mean=[a,b,c]", "data.mean=[a,b,c]: must be a list of numbers, as [a,b]"),
        ("~optimizer.lr", "~optimizer.lr: optimizer.lr cannot be removed"),
        ("+model=v2", "+model=v2: leave out the +"),
        ("hydra.sweeper.foo=1", "hydra.sweeper.foo=1: not a setting of Hydra; --hydra-help"),
        ("model=v2,v3_small", "model=v2,v3_small: several values are a sweep, which needs -m"),
        (
            "model=[v2,v3_small]",
            "model=[v2,v3_small]: takes one option; a sweep over several is -m model=v2,v3_small",
        ),
        ("model.width_mult=null", "model.width_mult=null: must be a number"),
        ("model.args=3", "model.args=3: must be a mapping, as {a:1}"),
        ("data.mean=0.5", "data.mean=0.5: must be a list of numbers, as [a,b]"),
        ("model.num_classes=x", "model.num_classes=x: must be a whole number or null"),
        ("model=", "model=: not known; allowed: kuanwang_v3_large"),
        ("train.seed=99999999999999999999", "train.seed=99999999999999999999: must be a whole"),
        ("run.root=''", "run.root=: must name a folder"),
        ("distill.share=0.2", "distill.teacher=null: required when another distill.* key is set"),
        ("foo", "foo: not understood"),
        ("foo=bar=baz", "foo=bar=baz: not understood; an override reads key=value; quote special"),
        ("train.epochs=???", "train.epochs=???: must be given"),
    ],
)
def test_bad_input_is_explained_in_one_line(words, line):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the line is compared
        compose(words)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        ("eval", "run.devices=8", "run.devices=8: no such key; did you mean run.device?"),
        ("eval", "run.smoke=true", "run.smoke=true: no such key"),
        ("eval", "data.mixup=0.5", "data.mixup=0.5: no such key"),
        ("eval", "train.epochs=3", "train.epochs=3: no such key"),
        ("train", "run.loader=threads", "run.loader=threads: no such key; leave it out: images"),
        ("bench", "run.workers=99", "run.workers=99: no such key"),
        ("train", "checkpoint=x", "checkpoint=x: no such key"),
        ("eval", "model.dropout=0.5", "model.dropout=0.5: no such key"),
        ("eval", "checkpoint=a,b", "checkpoint=a,b: takes one value"),
    ],
)
def test_a_program_refuses_the_keys_of_another(program, words, line):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the line is compared
        compose(words, program=program)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("key", ["weights", "checkpoint", "image", "data.labels"])
def test_an_empty_name_is_refused(key):
    with pytest.raises(InputError, match=f"{key}=: must not be empty"):
        compose(f"{key}=", program="eval")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "train:\n  epochs: 3\n",
            "experiment/mine.yaml: its first line must be `# @package _global_`",
        ),
        (
            "defaults:\n  - override /model: v2\n",
            "experiment/mine.yaml: its first line must be `# @package _global_`",
        ),
        (
            "# @package _global_\ntrain:\n  epocs: 3\n",
            "experiment/mine.yaml: train.epocs is no key; did you mean train.epochs?",
        ),
        (
            "# @package _global_\ntrain:\n  epochs: many\n",
            "experiment/mine.yaml: train.epochs=many must be a whole number",
        ),
        (
            "# @package _global_\noptimiser:\n  lr: 1\n",
            "experiment/mine.yaml: optimiser is no key; did you mean optimizer?",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, content, line):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the line is compared
        compose("experiment=mine", config_dir=str(tmp_path))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain: [1\n")
    with pytest.raises(ValueError, match=r"experiment/mine.yaml: not valid YAML at line \d"):
        compose("experiment=mine", config_dir=str(tmp_path))


def test_a_folder_of_one_s_own_files_hides_no_value(tmp_path):
    """The words beside --config-dir are looked up as ever."""
    (tmp_path / "conf").mkdir()
    words = ("--config-dir", "conf", "model.widht_mult=1")
    done = programs.run(tmp_path, "train.py", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.widht_mult=1: no such key; did you mean")


def test_only_the_bad_word_is_shown():
    with pytest.raises(ValueError, match=r"^train.epochs=\(3: not understood; .*quote"):
        compose("model=v2", "train.epochs=(3", "data.root=/a")


@pytest.mark.parametrize(
    "text", ["2024_01_05", "1e3", "007", "true", "/a/epoch=9", "/a (1)/b", "it's", "/ö/猫", "~name",
             "C:\\new\\", "null_", "a b"],
)  # fmt: skip
def test_a_text_stays_as_it_was_typed(text):
    assert compose("data=imagefolder", f"data.root={text}").data.root == text


def test_the_home_folder_is_expanded_in_places(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    train = compose("data=imagefolder", "data.root=~/photos", "run.root=~", "weights=~/w.pth")
    found = (train.data.root, train.run.root, train.weights)
    assert found == (f"{tmp_path}/photos", str(tmp_path), f"{tmp_path}/w.pth")
    scored = compose("checkpoint=~/a=1.pt", "image=~/p.jpg", "data.labels=~/l", program="eval")
    found = (scored.checkpoint, scored.image, scored.data.labels)
    assert found == (f"{tmp_path}/a=1.pt", f"{tmp_path}/p.jpg", f"{tmp_path}/l")


def test_what_compose_is_asked_for_is_checked(tmp_path):
    with pytest.raises(InputError, match="config_dir=nowhere: no such folder"):
        compose(config_dir="nowhere")
    with pytest.raises(InputError, match="program=evaluate: not known; allowed: train, eval"):
        compose(program="evaluate")
    folder = tmp_path / "a, b"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("name: v2\nwidth_mult: 0.5\n")
    assert compose("model=mine", config_dir=str(folder)).model.width_mult == 0.5

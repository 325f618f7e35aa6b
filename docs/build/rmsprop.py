"""Writes docs/RMSPROP.md and its curves from the runs of the RMSprop story: `make rmsprop`.

Every figure on the page comes from those runs, or from a step measured here.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from torch import nn

from docs.build.pages import DOCS, run
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.build import build_model
from mobilenet_exp.tracking.sweeps import Sweep
from mobilenet_exp.training.optim import build_optimizer

# each arm's name on the page, its colour, and the row of the old repository it answers to
ARMS = {
    "sgd": ("SGD", "#4c566a", "68.848 / 88.740"),
    "torch_at_sgd_rate": ("PyTorch's RMSprop at SGD's rate", "#bf3f3f", "0.104 / 0.494"),
    "tensorflow": ("TensorFlow's RMSprop", "#2e7d4f", "-"),
    "from_sgd": ("PyTorch's RMSprop from SGD's weights", "#2f6fb0", "69.526 / 88.978"),
    "torch_at_sane_rate": ("PyTorch's RMSprop from scratch, same rate", "#b8860b", "-"),
}
# sizes of a gradient that the first step is measured at
GRADIENTS = (1e-1, 1e-3)

# top-1 in percent above which a run on ten classes has trained, and below which it has not
TRAINED, AT_CHANCE = 80.0, 15.0

PAGE = """# Why RMSprop printed 0.104 %

The old PyTorch V1 repository trained MobileNetV1 on ImageNet three ways and printed
68.848 % for SGD, **0.104 %** for RMSprop, which is 52 of 50,000 images and chance, and
69.526 % for RMSprop started from the SGD weights. No RMSprop code is in any commit of it. This
page repeats the three rows on the digits that scikit-learn carries, V1 at width
{width_mult:g}, {epochs} epochs, seed {seed}:

```
make rmsprop
```

(`conf/experiment/rmsprop_story/` holds the arms, one command each.)

![validation top-1 and training loss of the arms, by epoch](rmsprop.svg)

| arm | lr | last epoch top-1 % | best top-1 % | first epoch's loss | old row, ImageNet |
|---|---|---|---|---|---|
{rows}

Chance is 10 %. The top-1 is of 360 held-out digits: one digit is 0.28, one seed each, so
arms that differ by a few tenths are equal.

## The first step

RMSprop divides each gradient g by the root of a running mean of g squared. What a weight
moves in the first update, measured with the optimizers as the arms build them:

| arm | {sizes} |
|---|{rules}|
{steps}

- **PyTorch's average starts at zero.** After one gradient it holds (1 - alpha) g squared, so
  the first step is lr / sqrt(1 - alpha) whatever the gradient's size: with lr {lr:g} and
  alpha {alpha:g} *every* weight moves by {moved:.2g}, {ratio:.0f} times a typical initial
  weight of this net ({typical:.3f}). The weights are gone after one update. Momentum of
  {momentum:g}, kept from SGD, carries most of the same push through the next ten.
- **TensorFlow's average starts at one**, so it cannot be small while nothing is known yet.
- **Epsilon stands inside the root there, and the authors' code set it to 1.0.** g / sqrt(mean
  + 1.0) is nearly g itself as long as gradients are small: the rule starts out as SGD with a
  smaller rate, and only large gradients are divided down. PyTorch adds epsilon outside the
  root, 1e-8 by default, which bounds nothing.

## What rescued it

Starting from the SGD weights is not what rescued it: the last arm has the same small rate,
{sane_lr:g}, without them, and trains too ({sane_top1:.2f} % after the last epoch,
{from_top1:.2f} % from SGD's weights). It is the rate. A rate that suits SGD, whose step
shrinks with the gradient, is no rate for a rule whose first step does not.

What this page cannot show: ImageNet. `experiment=marvis_v1_rmsprop` and
`experiment=marvis_v1_rmsprop_from_sgd` are the same runs there; the old repository's own rates
are unknown, and these are the likeliest reading. `optimizer=rmsprop` here is TensorFlow's
rule with timm's epsilon, 0.001, `optimizer=rmsprop_torch` is PyTorch's with torchvision's,
0.0316.
"""


def read_arms(sweep: Path) -> dict[str, dict[str, Any]]:
    """Return each arm's config, metrics and results from the records of a sweep.

    Raises ValueError if an arm is missing or has failed.
    """
    arms = {}
    for job in Sweep(sweep).jobs():
        (word,) = (word for word in job["overrides"] if word.startswith("experiment="))
        if job["results"] is None:
            raise ValueError(f"{word} failed: {job['error']}")
        folder = sweep.parents[1] / job["results"]["name"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        arms[word.rpartition("/")[2]] = {
            "config": yaml.safe_load((folder / "config.yaml").read_text()),
            "rows": [row for row in rows if "epoch" in row],
            "results": job["results"],
        }
    if missing := set(ARMS) - set(arms):
        raise ValueError(f"the sweep lacks {', '.join(sorted(missing))}")
    return {name: arms[name] for name in ARMS}


def first_step(optimizer: dict[str, Any], gradient: float) -> float:
    """Return by how much a weight moves in the first update with this gradient."""
    model = nn.Linear(1, 1, bias=False).requires_grad_()
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((1, 1), gradient)
    build_optimizer(model, **optimizer | {"weight_decay": 0.0}).step()
    return (model.weight.detach() - before).abs().item()


def check_conclusions(arms: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError for the first statement of the page that the runs contradict."""
    last = {name: arm["rows"][-1]["val/top1"] for name, arm in arms.items()}
    rates = {name: arm["config"]["optimizer"]["lr"] for name, arm in arms.items()}
    steps = {name: first_step(arm["config"]["optimizer"], 0.1) for name, arm in arms.items()}
    statements = {
        "SGD trains": last["sgd"] > TRAINED,
        "TensorFlow's RMSprop trains at its rate": last["tensorflow"] > TRAINED,
        "PyTorch's RMSprop is at chance at SGD's rate": last["torch_at_sgd_rate"] < AT_CHANCE,
        "it trains from SGD's weights": last["from_sgd"] > TRAINED,
        "it trains from scratch at that arm's rate": last["torch_at_sane_rate"] > TRAINED,
        "both have the same rate": rates["from_sgd"] == rates["torch_at_sane_rate"],
        "a weight moves by about 1 in the first update": steps["torch_at_sgd_rate"] > 0.5,
        "TensorFlow's first step is a small one": steps["tensorflow"] < 0.1,
    }
    for statement, holds in statements.items():
        if not holds:
            raise ValueError(f"the page says that {statement}; these runs do not show it: {last}")


def page(arms: dict[str, dict[str, Any]]) -> str:
    """Return the page's text, all its figures from the arms.

    Raises ValueError if the runs do not bear out what the text concludes from them.
    """
    check_conclusions(arms)
    optimizers = {name: arm["config"]["optimizer"] for name, arm in arms.items()}
    config = arms["sgd"]["config"]
    weights = build_model("v1", width_mult=config["model"]["width_mult"]).blocks[5]
    typical = weights.pointwise.conv.weight.detach().std().item()
    rows = [
        f"| {ARMS[name][0]} | {optimizers[name]['lr']:g} | {arm['rows'][-1]['val/top1']:.2f} "
        f"| {arm['results']['top1']:.2f} | {arm['rows'][0]['train/loss']:.2f} | {ARMS[name][2]} |"
        for name, arm in arms.items()
    ]
    steps = [
        f"| {ARMS[name][0]} | "
        + " | ".join(f"{first_step(optimizers[name], size):.2g}" for size in GRADIENTS)
        + " |"
        for name in arms
    ]
    return PAGE.format(
        width_mult=config["model"]["width_mult"],
        epochs=config["train"]["epochs"],
        seed=config["train"]["seed"],
        rows="\n".join(rows),
        sizes=" | ".join(f"gradient {size:g}" for size in GRADIENTS),
        rules="|".join("---" for _ in GRADIENTS),
        steps="\n".join(steps),
        typical=typical,
        lr=optimizers["torch_at_sgd_rate"]["lr"],
        alpha=optimizers["torch_at_sgd_rate"]["args"]["alpha"],
        momentum=optimizers["torch_at_sgd_rate"]["args"]["momentum"],
        moved=first_step(optimizers["torch_at_sgd_rate"], GRADIENTS[0]),
        ratio=first_step(optimizers["torch_at_sgd_rate"], GRADIENTS[0]) / typical,
        sane_lr=optimizers["torch_at_sane_rate"]["lr"],
        sane_top1=arms["torch_at_sane_rate"]["rows"][-1]["val/top1"],
        from_top1=arms["from_sgd"]["rows"][-1]["val/top1"],
    )


def draw(arms: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw accuracy and loss of the arms by epoch."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.fonttype": "none", "svg.hashsalt": "rmsprop", "font.size": 10}
    with plt.rc_context(style):
        figure, (top, bottom) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        for name, arm in arms.items():
            title, colour, _ = ARMS[name]
            epochs = [row["epoch"] for row in arm["rows"]]
            accuracy = [row["val/top1"] for row in arm["rows"]]
            top.plot(epochs, accuracy, color=colour, marker="o", markersize=3, label=title)
            bottom.plot(epochs, [row["train/loss"] for row in arm["rows"]], color=colour)
        top.axhline(10, color="0.6", linewidth=0.8, linestyle=":")
        top.text(epochs[-1], 11, "chance", color="0.4", ha="right", va="bottom", fontsize=8)
        top.set(xlabel="epoch", ylabel="validation top-1, %", ylim=(0, 102))
        bottom.set(xlabel="epoch", ylabel="training loss, log scale", yscale="log")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        about = {"Date": None, "Title": "RMSprop on digits"}
        figure.savefig(path, metadata=about if path.suffix == ".svg" else None, dpi=110)
        plt.close(figure)


def main(words: list[str]) -> None:
    """Write the page and its picture from the sweep named on the command line."""
    if len(words) != 1:
        raise InputError("rmsprop", " ".join(words), "takes one argument, the sweep's folder")
    try:
        arms = read_arms(Path(words[0]))
        text = page(arms)
    except ValueError as error:
        raise InputError("rmsprop", words[0], str(error)) from error
    (DOCS / "RMSPROP.md").write_text(text)
    draw(arms, DOCS / "rmsprop.svg")
    console.line(f"wrote {DOCS / 'RMSPROP.md'} and rmsprop.svg")


if __name__ == "__main__":
    run(main)

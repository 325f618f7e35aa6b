"""The page's figures come from runs; the committed page is of the arms as they are."""

import json
import re

import pytest
import yaml

from docs.build import rmsprop as rmsprop_page
from mobilenet_exp.config.identity import run_name

TOP1 = {
    "sgd": 90.0, "torch_at_sgd_rate": 10.0, "tensorflow": 91.0, "from_sgd": 92.0,
    "torch_at_sane_rate": 85.0,
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path, compose_config):
    """Records of a sweep over the arms, each with metrics of its own."""
    folder = tmp_path / "sweeps" / "story"
    folder.mkdir(parents=True)
    for number, name in enumerate(rmsprop_page.ARMS):
        config = compose_config(f"experiment=rmsprop_story/{name}")
        run = tmp_path / f"run{number}"
        run.mkdir()
        kept = {
            "model": {"width_mult": config.model.width_mult},
            "train": {"epochs": 2, "seed": 0},
            "optimizer": {
                "name": config.optimizer.name,
                "lr": config.optimizer.lr,
                "weight_decay": config.optimizer.weight_decay,
                "args": dict(config.optimizer.args),
            },
        }
        (run / "config.yaml").write_text(yaml.safe_dump(kept))
        rows = [
            {"epoch": epoch, "val/top1": TOP1[name] + epoch, "train/loss": 3.0 - number / 2}
            for epoch in (1, 2)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = {
            "number": number,
            "overrides": [f"experiment=rmsprop_story/{name}"],
            "results": {"name": run.name, "top1": TOP1[name] + 2},
            "error": None,
            "is_bad_input": False,
        }
        (folder / f"job-{number}.json").write_text(json.dumps(job))
    return folder


def test_the_page_holds_the_runs_figures_and_measured_steps(sweep, tmp_path):
    arms = rmsprop_page.read_arms(sweep)
    text = rmsprop_page.page(arms)
    assert (
        "| PyTorch's RMSprop at SGD's rate | 0.1 | 12.00 | 12.00 | 2.50 | 0.104 / 0.494 |" in text
    )
    # lr / sqrt(1 - alpha), whatever the gradient; TensorFlow's is small for small ones
    assert "| PyTorch's RMSprop at SGD's rate | 1 | 1 |" in text
    assert "| TensorFlow's RMSprop | 0.0033 | 3.3e-05 |" in text
    rmsprop_page.draw(arms, tmp_path / "curves.svg")
    picture = (tmp_path / "curves.svg").read_text()
    for name, _, _ in rmsprop_page.ARMS.values():
        assert name.replace("'", "&#39;") in picture or name in picture


def test_a_conclusion_that_the_runs_do_not_bear_out_is_no_page(sweep):
    """The text follows from the figures, or there is none."""
    arms = rmsprop_page.read_arms(sweep)
    arms["torch_at_sgd_rate"]["rows"][-1]["val/top1"] = 70.0
    with pytest.raises(ValueError, match="is at chance at SGD's rate; these runs do not show it"):
        rmsprop_page.page(arms)


def test_a_missing_or_failed_arm_is_named(sweep):
    path = sweep / "job-2.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps(job | {"results": None, "error": "diverged"}))
    with pytest.raises(ValueError, match="rmsprop_story/tensorflow failed: diverged"):
        rmsprop_page.read_arms(sweep)
    path.unlink()
    with pytest.raises(ValueError, match="the sweep lacks tensorflow"):
        rmsprop_page.read_arms(sweep)


def test_the_committed_page_tells_the_story(compose_config):
    """Collapse, training and rescue, as its own rows say; rates as the arms have them."""
    text = (rmsprop_page.DOCS / "RMSPROP.md").read_text()
    last = {}
    for name, (title, _, _) in rmsprop_page.ARMS.items():
        row = re.search(rf"^\| {re.escape(title)} \| (\S+) \| (\S+) \| \S+ \| \S+ \|", text, re.M)
        assert float(row[1]) == compose_config(f"experiment=rmsprop_story/{name}").optimizer.lr
        last[name] = float(row[2])
    assert last["torch_at_sgd_rate"] < 15
    assert min(last[name] for name in ("sgd", "tensorflow", "from_sgd")) > 90
    source = run_name(compose_config("experiment=rmsprop_story/sgd"))
    assert source in compose_config("experiment=rmsprop_story/from_sgd").weights

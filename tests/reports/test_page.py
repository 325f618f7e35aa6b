"""The page of runs, as text and in a headless browser."""

import base64
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from mobilenet_exp import train
from mobilenet_exp.__main__ import main
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.reports import page as pages
from mobilenet_exp.reports.reading import read_runs

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(quick_in, tmp_path_factory):
    """Three trained runs, and copies of one that are odd in every way."""
    folder = tmp_path_factory.mktemp("page")
    for words in (("train.seed=1", "run.pictures=true"), ("model.width_mult=0.5",)):
        train(quick_in(folder, "train.epochs=2", *words), overrides=words)
    root = folder / "runs"
    whole = next(root.glob("*-s1-*"))
    no_results = shutil.ignore_patterns("results.json")
    for name in ("stopped", "<b>bold & <i>", os.fsdecode(b"caf\xe9"), "damaged", "cut_off"):
        shutil.copytree(whole, root / name, ignore=no_results)
    (root / "damaged" / "results.json").write_text('{"top1": 1')
    with (root / "cut_off" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val/')
    (root / "cut_off" / "best" / "confusion.csv").write_text("label,0\n1")
    (root / "cut_off" / "best" / "errors.png").write_bytes(b"\x89PNG half")
    evil = root / "<b>bold & <i>"
    (evil / "error.txt").write_text(EVIL)
    (evil / "config.yaml").write_text(json.dumps({"model": {"name": EVIL}, EVIL: EVIL}))
    (evil / "provenance.json").write_text(json.dumps({"starts": [{"command": EVIL}]}))
    (evil / "wandb.json").write_text(json.dumps({"group": EVIL}))
    (evil / "best" / "per_class.csv").write_text(f'class,num_images,top1\n"{EVIL}",5,50.0\n')
    (root / "empty").mkdir()
    # begun a moment ago
    (root / "young").mkdir()
    (root / "young" / "provenance.json").write_text(json.dumps({"starts": [{"command": "c"}]}))
    return root


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "runs.html"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert main(["page", str(runs), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    return out


def _data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found[1])


def _detail(html: str, number: int) -> dict:
    found = re.search(f'id="run-{number}">(.*?)</script>', html)
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def _numbers(html: str) -> dict[str, int]:
    return {row[0]: number for number, row in enumerate(_data(html)["rows"])}


def test_the_page_holds_what_runs_say(runs, file):
    html = file.read_text()
    data, numbers = _data(html), _numbers(html)
    assert set(numbers) == {
        each.name if each.name.isprintable() else "caf\\xe9" for each in read_runs(runs)
    }
    name = next(name for name in numbers if "-s1-" in name)
    row = dict(zip(data["columns"], data["rows"][numbers[name]], strict=True))
    results = json.loads((runs / name / "results.json").read_text())
    assert row["top1"] == results["top1"]
    assert row["command"] == "python train.py train.seed=1 run.pictures=true"
    detail = _detail(html, numbers[name])
    assert detail["curves"]["epoch"] == [1, 2]
    assert len(detail["curves"]["val/top1"]) == 2
    assert len(detail["answers"]["classes"]) == 10
    right = sum(n for label, answer, n in detail["answers"]["matrix"] if label == answer)
    assert 100 * right / 360 == pytest.approx(results["top1"])
    assert detail["errors"].startswith("data:image/webp;base64,")
    # a configuration is what differs from the most frequent values
    assert detail["config"].keys() <= {"train.seed", "run.pictures", "run.root"}
    narrow = next(name for name in numbers if "-w0.5-" in name)
    assert _detail(html, numbers[narrow])["config"]["model.width_mult"] == "0.5"
    assert set(data["papers"]) == {"V1", "V2", "V3", "V4"}


def test_what_is_half_written_costs_no_more_than_itself(file):
    html = file.read_text()
    detail = _detail(html, _numbers(html)["cut_off"])
    assert detail["curves"]["epoch"] == [1, 2]
    assert detail["answers"]["matrix"] is None
    assert detail["errors"] is None


def test_many_runs_have_fewer_points_and_the_newest_have_the_pictures(monkeypatch, runs):
    monkeypatch.setattr(pages, "MANY_RUNS", 1)
    monkeypatch.setattr(pages, "PICTURES", 10_000)
    monkeypatch.setattr(pages, "ANSWERS", 10)
    found = read_runs(runs)
    html = pages.page(found, runs)
    details = [_detail(html, number) for number in range(len(found))]
    pictures = [bool(each.get("errors")) for each in details]
    assert sum(pictures) == 1
    # a run that has its own says nothing
    assert not any("left_out" in each and each["answers"] and each["errors"] for each in details)
    without = [each["left_out"] for each in details if "left_out" in each]
    assert without
    assert all("newest runs only" in each for each in without)
    rows = [{"epoch": epoch, "val/top1": epoch / 7} for epoch in range(1, 301)]
    curves = pages._curves(rows, "epoch", 50)
    assert len(curves["epoch"]) == 50
    assert curves["epoch"][-1] == 300
    assert curves["val/top1"][-1] == pytest.approx(300 / 7, rel=1e-4)


def test_evaluations_are_rows_of_their_own(runs, tmp_path):
    root = tmp_path / "runs"
    whole = next(runs.glob("*-s1-*"))
    shutil.copytree(whole, root / "run")
    shutil.copytree(whole, root / "run" / "eval" / "best-digits")
    html = pages.page(read_runs(root), root)
    numbers = _numbers(html)
    assert set(numbers) == {"run", "run/eval/best-digits"}
    kinds = [row[_data(html)["columns"].index("kind")] for row in _data(html)["rows"]]
    assert sorted(kinds) == ["eval", "train"]


def _with_answers(folder: Path, classes: str, confusion: str) -> dict:
    (folder / "best").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "train/loss": 2.0}\n')
    (folder / "best" / "per_class.csv").write_text(f"class,num_images,top1\n{classes}")
    (folder / "best" / "confusion.csv").write_text(confusion)
    html = pages.page(read_runs(folder.parent), folder.parent)
    return _detail(html, _numbers(html)[folder.name])


def test_a_class_without_images_moves_no_other(tmp_path):
    classes = "a,2,50.0\nb,0,\nc,3,33.333333\nd,1,100.0\n"
    confusion = ",a,b,c,d\na,1,0,1,0\nb,0,0,0,0\nc,2,0,1,0\nd,0,0,0,1\n"
    answers = _with_answers(tmp_path / "run", classes, confusion)["answers"]
    assert answers["classes"] == ["a", "b", "c", "d"]
    assert answers["top1"] == [50.0, None, 33.33, 100.0]
    assert answers["most_confused"] == [["c", "a", 2], ["a", "c", 1]]
    assert [0, 2, 1] in answers["matrix"]


def test_what_is_not_known_of_a_run_is_not_told(tmp_path):
    detail = _with_answers(tmp_path / "run", "a,broken\n", "")
    assert detail["config"] is None
    assert detail["answers"] is None
    # damaged, not left out for want of room
    assert "left_out" not in detail


def test_a_page_of_no_runs_and_of_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert main(["page", str(tmp_path / "runs")]) == 0
    assert "0 runs" in capsys.readouterr().out
    assert _data((tmp_path / "runs.html").read_text())["rows"] == []
    assert main(["page", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "runs.v2").mkdir()
    assert main(["page", "runs.v2"]) == 0
    assert (tmp_path / "runs.v2.html").exists()
    with pytest.raises(InputError, match="--out: is needed: the folder has no name"):
        pages.main(["/"])
    with pytest.raises(InputError, match="is a folder"):
        pages.main([str(tmp_path / "runs"), "--out", str(tmp_path)])


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and not os.environ.get("NEEDS_BROWSER"):
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page in the browser, with everything that it must not do noted."""

    def __init__(self, browser, file: Path, **options) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(f"console: {said.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("request", self._note)
        self.page.goto(file.as_uri())
        self.page.locator("body[data-state=ready]").wait_for()

    def _note(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"request: {request.url}")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        hacked = self.page.evaluate("window.hacked")
        self.context.close()
        assert self.wrong == []
        assert hacked is None

    def names(self) -> list[str]:
        return self.page.locator("#rows td.name").all_text_contents()

    def column(self, title: str) -> list[str]:
        heads = [each.strip(" ↓↑") for each in self.page.locator("#heads th").all_text_contents()]
        at = heads.index(title) + 1
        return self.page.locator(f"#rows td:nth-child({at})").all_text_contents()


def test_sorting(browser, file):
    with Opened(browser, file) as opened:
        for _ in range(2):
            opened.page.get_by_role("button", name=re.compile("^Top-1 %")).click()
            cells = [cell for cell in opened.column("Top-1 %") if cell != "-"]
            falls = opened.page.locator("th[data-key=top1]").get_attribute("aria-sort")
            values = [float(cell) for cell in cells]
            assert values == sorted(values, reverse=falls == "descending")
        assert falls == "ascending"
        # those without a value stay last
        assert opened.column("Top-1 %")[-1] == "-"
        assert opened.names()[-1] == "young"


def test_filtering_by_keyboard_and_lists(browser, file):
    with Opened(browser, file) as opened:
        everything = len(opened.names())
        opened.page.get_by_label("Search").focus()
        opened.page.keyboard.type("w0.5")
        (name,) = opened.names()
        assert "-w0.5-" in name
        assert f"1 of {everything} runs" in opened.page.locator("#count").text_content()
        opened.page.get_by_role("button", name="Show all").click()
        expect(opened.page.locator("#rows tr")).to_have_count(everything)
        opened.page.get_by_label("State").select_option("damaged")
        assert opened.names() == ["damaged"]


def test_choosing_runs_shows_curves_differences_and_answers(browser, file):
    with Opened(browser, file) as opened:
        page = opened.page
        wide = next(name for name in opened.names() if "-w0.5-" in name)
        deep = next(name for name in opened.names() if "-s1-" in name)
        for name in (wide, deep):
            page.get_by_label(f"Choose {name}").check()
        page.locator("#details article").nth(1).wait_for()
        assert page.locator("#curves .scatterlayer .trace").count() == 2
        page.locator("#metric").select_option("train/loss")
        assert "train/loss" in page.locator("#curves .ytitle").text_content()
        cells = page.locator("#differences tr").all_text_contents()
        assert "model.width_mult0.50.35" in cells
        article = page.locator("#details article").nth(1)
        assert (
            article.locator("code").text_content()
            == "python train.py train.seed=1 run.pictures=true"
        )
        assert article.locator(".barlayer .point").count() == 10
        assert article.locator(".heatmaplayer").count() == 1
        assert article.locator("img").evaluate("each => each.naturalWidth") > 500
        article.get_by_role("button", name="Copy").click()
        expect(article.get_by_text(re.compile("Copied|Selected"))).to_be_visible()
        page.get_by_role("button", name="Choose none").click()
        assert page.locator("#chosen").is_hidden()


def test_no_text_of_a_run_is_taken_for_html(browser, file):
    with Opened(browser, file) as opened:
        page = opened.page
        for box in page.locator("#rows input").all():
            box.check()
        page.locator("#details article").nth(5).wait_for()
        page.wait_for_timeout(300)
        assert page.locator("main b, main i, main script").count() == 0
        assert EVIL in page.locator("#details").text_content()
        # every picture is one of ours
        sources = page.locator("main img").evaluate_all("all => all.map((each) => each.src)")
        assert all(each.startswith("data:image/webp") for each in sources)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_fits_the_screen_in_both_themes(browser, file, scheme, width):
    size = {"width": width, "height": 800}
    with Opened(browser, file, color_scheme=scheme, viewport=size) as opened:
        page = opened.page
        page.locator("#rows input").first.check()
        page.locator("#details article").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before

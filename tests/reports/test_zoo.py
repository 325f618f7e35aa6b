"""The page of all rows is what the code would write now, and its commands work."""

import re

import pytest

from docs.build import zoo
from mobilenet_exp.models.build import nondefault_options
from mobilenet_exp.papers.rows import NOT_BUILT, paper_rows

BUILT = [row for row in paper_rows() if row.model not in NOT_BUILT]


def test_the_page_is_fresh():
    assert zoo.page() == zoo.PAGE.read_text(), "stale: run `make zoo`"


def test_the_picture_shows_the_rows_of_now():
    assert zoo.points_digest() in zoo.PICTURE.read_text(), "stale: run `make zoo`"
    # a change of one accuracy is another picture
    first = zoo.points()["V1"]["authors"][0]
    assert first == (pytest.approx(13.570048), 41.5)


def test_every_row_is_on_the_page():
    lines = zoo.PAGE.read_text().splitlines()
    table = [line for line in lines if re.match(r"\| [\d.]+ \| \d+ \| ", line)]
    assert len(table) == len(paper_rows())


def test_a_row_s_words_compose_its_own_net_and_side(compose_config):
    """Each command once; rows of several sources share theirs."""
    for words, row in {zoo.words(row): row for row in BUILT}.items():
        name = "eval" if "weights=" in words else "train"
        config = compose_config("data=imagenet", *words.split(), program=name)
        published = nondefault_options(config.model.args)
        composed = (config.model.name, config.model.width_mult, config.data.resolution, published)
        assert composed == (row.model, row.width_mult, row.resolution, row.options)
        if name == "eval":
            assert config.weights == row.source


def test_the_picture_is_drawn(tmp_path):
    zoo.draw(tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert zoo.points_digest() in text
    assert "published ImageNet top-1, %" in text

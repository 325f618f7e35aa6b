"""The notebook runs from its first cell to its last, and is kept with what it printed."""

import os
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from programs import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def _printed(notebook) -> str:
    """Return the text of all cells' outputs."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return "\n".join(texts)


def _num_pictures(notebook) -> int:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return sum(bool({"image/png", "image/jpeg"} & out.get("data", {}).keys()) for out in outputs)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    shutil.copy(TOUR, folder)
    notebook = nbformat.read(folder / TOUR.name, as_version=4)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    # a cell that fails raises
    client.execute(env=env)
    return notebook


def test_the_notebook_runs(executed):
    printed = _printed(executed)
    assert "Profile(madds=56510400, params=2542856)" in printed
    assert "largest difference of an answer" in printed
    assert "mobilenet_exp" in printed
    assert "Warning" not in printed


def test_the_notebook_is_kept_as_it_runs(executed):
    kept = nbformat.read(TOUR, as_version=4)
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "stale: make tour"
    assert _num_pictures(kept) == _num_pictures(executed) == 6
    # what is the same on every machine
    alike = [
        (ours, theirs)
        for ours, theirs in zip(kept.cells, executed.cells, strict=True)
        if "print(" in ours.source and "difference" not in ours.source
    ]
    assert len(alike) > 3
    for ours, theirs in alike:
        assert ours.outputs == theirs.outputs, f"stale: make tour\n{ours.source}"
    for text in (_printed(kept), _printed(executed)):
        assert str(ROOT) not in text
        assert "/tmp" not in text

"""Libraries that are missing, and those that are there and do not load."""

import pytest

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.libraries import library


def test_a_missing_library_is_one_to_install():
    with pytest.raises(InputError, match="format=onnx: needs no_such_thing, which is not inst"):
        library("no_such_thing", "format", "onnx")
    with pytest.raises(InputError, match="needs no_such_thing.inner, which is not installed"):
        library("no_such_thing.inner", "format", "onnx")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import another_missing_thing", "No module named 'another_missing_thing'"),
        ("raise OSError('libfoo.so.1: cannot open shared object')", "libfoo.so.1: cannot open"),
        ("import torch; torch.no_such_name", "has no attribute 'no_such_name'"),
    ],
)
def test_a_broken_library_says_what_breaks_it(content, reason, tmp_path, monkeypatch):
    (tmp_path / "broken_here.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"which cannot be imported: .*{reason}"):
        library("broken_here", "format", "onnx")

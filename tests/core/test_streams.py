"""Programs that are started without a stream, or with one that takes nothing."""

import os
import subprocess
import sys

import pytest
from programs import ROOT

CODE = (
    "import sys; from mobilenet_exp.core.streams import prepare_streams, say;"
    "from mobilenet_exp.core import console; prepare_streams();"
    "kept = open(sys.argv[1], 'w'); console.line('hello'); say('a word'); kept.write('mine')"
)


def _run(tmp_path, redirection: str) -> subprocess.CompletedProcess:
    command = f'"$0" -c "$1" "$2" {redirection}'
    words = ["sh", "-c", command, sys.executable, CODE, str(tmp_path / "kept")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nowhere_and_no_file_gets_what_is_printed(tmp_path, redirection):
    done = _run(tmp_path, redirection)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_standard_output_costs_one_line(tmp_path):
    done = _run(tmp_path, ">/dev/full")
    assert done.returncode == 0
    assert done.stderr == (
        "standard output cannot be written (No space left on device); the program continues\n"
        "a word\n"
    )

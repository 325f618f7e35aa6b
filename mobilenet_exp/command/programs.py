"""The programs: the files they compose, their schemas, their exit codes. Runs nothing."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigSource

from mobilenet_exp.config.schema import BenchConfig, Config, EvalConfig, ExportConfig, PackConfig

# in a wheel the YAML files lie in the package, in a checkout beside it
PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(each for each in (PACKAGE / "conf", PACKAGE.parent / "conf") if each.is_dir())
# name of the program: its file in conf/ and its schema
PROGRAMS = {
    "train": ("config", Config),
    "eval": ("eval", EvalConfig),
    "bench": ("bench", BenchConfig),
    "pack": ("pack", PackConfig),
    "export": ("export", ExportConfig),
}
SWEEPING = ("train", "bench")
GROUPS = {
    "train": ("model", "optimizer", "schedule", "data", "train", "experiment", "hydra/launcher"),
    "eval": ("model", "data"),
    "bench": (),
    "pack": ("data",),
    "export": ("model", "data"),
}
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
# done, but not with everything that was asked for
INCOMPLETE = 3

# Hydra looks for a file's package in its first line, where a byte order mark would hide it
_read_header = ConfigSource._get_header_dict
ConfigSource._get_header_dict = staticmethod(lambda text: _read_header(text.lstrip("\ufeff")))

for _program, (_, _schema) in PROGRAMS.items():
    ConfigStore.instance().store(f"{_program}_schema", _schema)

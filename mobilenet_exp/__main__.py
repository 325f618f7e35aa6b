"""`python -m mobilenet_exp COMMAND`: everything that is not train, eval or bench.

Each command's module is imported when the command is given.
"""

import sys
from importlib import import_module

from mobilenet_exp.core.errors import InputError, RunError

# composed by Hydra, with a --help and errors of its own
PROGRAMS = {
    "pack": ("WORDS", "pack folders of images into shards; see pack --help"),
    "export": ("WORDS", "write a network for ONNX, OpenVINO, ...; see export --help"),
}

# command: its module, what it takes, what it does
COMMANDS = {
    "average": (
        "mobilenet_exp.weights.averaging",
        "RUN [COUNT]",
        "average the checkpoints that run.keep_best has kept",
    ),
    "photos": (
        "mobilenet_exp.datasets.photos",
        "FOLDER",
        "write a small set of real photographs, for data=photos",
    ),
    "runs": (
        "mobilenet_exp.reports.runs",
        "[diff A B|prune]",
        "list the runs of a folder; see runs --help",
    ),
    "page": (
        "mobilenet_exp.reports.page",
        "[ROOT]",
        "write the runs of a folder as one HTML page; see page --help",
    ),
    "workspace": (
        "mobilenet_exp.reports.workspace",
        "",
        "build W&B's workspace and report; see workspace --help",
    ),
}
# have options, and a --help of their own
OWN_HELP = ("runs", "page", "workspace")


def usage() -> str:
    """Return the text of `--help`."""
    lines = ["usage: python -m mobilenet_exp COMMAND", ""]
    listed = {name: entry[1:] for name, entry in COMMANDS.items()} | PROGRAMS
    for name, (takes, about) in listed.items():
        lines.append(f"  {f'{name} {takes}':<26}{about}")
    return "\n".join(
        [*lines, "", "python train.py, eval.py and bench.py have a --help of their own."]
    )


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code: 2 for bad input, 1 for what could not be done.

    Both print one line to standard error.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name in PROGRAMS:
        sys.argv = [f"python -m mobilenet_exp {name}", *rest]
        getattr(import_module("mobilenet_exp.cli"), name)()
        return 0
    if name not in COMMANDS:
        print(
            f"error: {name}: not a command; there are: {', '.join([*COMMANDS, *PROGRAMS])}",
            file=sys.stderr,
        )
        return 2
    module, takes, about = COMMANDS[name]
    if {"-h", "--help"} & set(rest) and name not in OWN_HELP:
        print(f"usage: python -m mobilenet_exp {name} {takes}".rstrip() + f"\n\n{about}")
        return 0
    try:
        import_module(module).main(rest)
    except ModuleNotFoundError as error:
        print(
            f"error: {name} needs {error.name}: pip install 'mobilenet-exp[reports]'",
            file=sys.stderr,
        )
        return 2
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

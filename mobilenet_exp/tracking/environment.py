"""W&B's settings outside the configuration: variables, settings file, `wandb agent`.

They apply where the configuration sets no value.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import wandb

from mobilenet_exp.core.errors import InputError, first_line

DEFAULT_PROJECT = "mobilenet_exp"
# seconds to wait for W&B's server to open a run, and for what is left to send at its end
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 60
Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = get_args(Mode)
# variables whose values are not shown
SECRET = re.compile("KEY|TOKEN|PASSWORD|PROXY|HEADERS")
# of W&B's variable, from earlier versions
OLD_MODES = {"dryrun": "offline", "run": "online"}
# the file in a run's folder that keeps how W&B knows the run
KEPT = "wandb.json"


class Surroundings(NamedTuple):
    """What W&B's variables and settings file name; None where they are silent."""

    project: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    # under `wandb agent`: the run that the agent has opened
    run_id: str | None = None


def read_surroundings() -> Surroundings:
    """Ask W&B for what its variables and its settings file say."""
    found = wandb.setup(settings()).settings
    return Surroundings(
        found.project,
        found.run_name,
        found.run_group,
        tuple(found.run_tags or ()),
        os.environ.get("WANDB_RUN_ID") if is_under_agent() else None,
    )


def is_under_agent() -> bool:
    """Return whether `wandb agent` has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def settings() -> "wandb.Settings":
    """Return W&B's settings for a run that prints nothing and ends within a minute.

    Raises InputError for a variable of W&B's that W&B refuses; an empty one counts as not set.
    """
    for name, value in list(os.environ.items()):
        if name.startswith("WANDB_") and not value:
            del os.environ[name]
        elif name.startswith("WANDB_"):
            with _refused_as(name, "..." if SECRET.search(name) else value):
                wandb.Settings().update_from_env_vars({name: value})
    found = wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off")
    # flush rows each second, not each 15: a killed run keeps them. The setting is private.
    if hasattr(found, "x_transaction_log_flush_interval"):
        found.x_transaction_log_flush_interval = 1.0
    # a server that is gone must not keep the run from ending
    if hasattr(found, "finish_timeout"):
        found.finish_timeout, found.finish_timeout_raises = FINISH_TIMEOUT, True
    return found


def check(project: str | None) -> None:
    """Raise InputError for variables, or a project's name, that W&B refuses."""
    settings()
    with _refused_as("run.wandb_project", project):
        wandb.Settings(project=project)


@contextmanager
def _refused_as(key: str, value: str | None) -> Iterator[None]:
    """Raise InputError under `key` for what W&B's settings refuse."""
    try:
        yield
    except (ValueError, wandb.errors.UsageError) as error:
        # pydantic's errors know the sentence alone; their text has it in the third line
        details = error.errors() if hasattr(error, "errors") else []
        problem = details[0]["msg"] if details else first_line(error)
        raise InputError(key, value, f"W&B refuses it: {problem}") from error


def resolve_mode(asked: str) -> tuple[Mode, str]:
    """Return online, offline or disabled, and the reason if it is not the requested one.

    `auto` follows WANDB_MODE or the settings file, else is online where there is a key and
    a network. Raises InputError for an unknown mode, and where online is requested and not
    available.
    """
    key, mode = "run.wandb", asked
    if mode == "auto" and (given := os.environ.get("WANDB_MODE")):
        key, mode = "WANDB_MODE", OLD_MODES.get(given, given)
        if mode not in MODES:
            raise InputError(key, given, f"not known; allowed: {', '.join(MODES)}")
    if mode == "disabled":
        # W&B is not used, and need not work
        return "disabled", ""
    if mode == "auto":
        in_file = wandb.setup(settings()).settings.mode
        mode = in_file if in_file in ("offline", "disabled") else mode
    for fixed in MODES:
        if mode == fixed != "online":
            return fixed, ""
    wandb.setup(settings())
    try:
        # asks the server before init does: an init that fails holds on to the run's id
        reason = "" if wandb.login(prompt=False, verify=True) else "no W&B key here"
    except wandb.errors.Error as error:
        reason = f"W&B was not reached or refused the key: {first_line(error)}"
    if reason and mode == "online":
        raise InputError(key, mode, f"{reason}; `wandb login` stores a key")
    return ("offline" if reason else "online"), reason


def known_group(folder: Path, group: str | None) -> str | None:
    """Return the group that a run of `folder` has had from its start, else `group`."""
    try:
        return json.loads((folder / KEPT).read_text())["group"]
    except (OSError, ValueError, KeyError, TypeError):
        return group


def kept_text(run: "wandb.Run", group: str | None) -> str:
    """Return the text of the file that keeps how W&B knows a run."""
    known: dict[str, Any] = {"id": run.id, "group": group, "name": run.name}
    known |= {"project": run.project, "entity": run.entity}
    return json.dumps(known, indent=2) + "\n"

"""Rows of papers as runs in Weights & Biases."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import wandb

from mobilenet_exp.tracking import environment


class Figures(NamedTuple):
    """One row: W&B's id for it and its name, the group it belongs to, and what it says."""

    id: str
    name: str
    group: str
    config: dict[str, Any]
    summary: dict[str, Any]


def log_figures(
    rows: Iterable[Figures], *, project: str, entity: str | None, job_type: str
) -> None:
    """Log each row as a finished run; rows that are logged again replace themselves."""
    for row in rows:
        run = wandb.init(
            project=project,
            entity=entity,
            id=row.id,
            name=row.name,
            group=row.group,
            job_type=job_type,
            config=row.config,
            mode="online",
            resume="allow",
            reinit="create_new",
            settings=environment.settings(),
        )
        run.summary.update(row.summary)
        run.finish()


def default_entity() -> str:
    """Return the default account or team of runs, from the server."""
    return wandb.Api().default_entity

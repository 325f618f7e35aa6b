"""The text of `--help`: commands to copy, groups with their options, keys with their meaning.

Everything is read from where it is defined: options from the YAML files, keys, types and
comments from the schema.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from mobilenet_exp.config.schema import Config

COMMENT, FIELD = re.compile(r"\s*# (.*)"), re.compile(r"    (\w+): ")


def field_comments(schema: type) -> dict[str, str]:
    """Return the comment above each field of a dataclass, its bases included."""
    comments: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        comment: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if match := COMMENT.match(line):
                comment.append(match[1])
            elif match := FIELD.match(line):
                comments[match[1]] = " ".join(comment)
                comment = []
            else:
                comment = []
    return comments


def help_text(about: str, schema: type, folders: list[Path], groups: tuple[str, ...]) -> str:
    """Return a program's help; `about` says what it does and holds commands to copy.

    `groups` are the config groups whose options are listed, from the YAML files in `folders`.
    """
    parts = [about.strip()]
    parts += ["", "Groups and their options (GROUP=OPTION):"] if groups else []
    for group in groups:
        files = sorted({f for folder in folders for f in (folder / group).rglob("*.yaml")})
        names = dict.fromkeys(_option(f, folders, group) for f in files)
        parts.append(_wrapped(f"  {group:<12}", " ".join(names)))
    parts += [
        "",
        "Keys (KEY=VALUE) with a general default, which the chosen options may change (???: they",
        "must); --cfg job prints the values that would run:",
    ]
    parts += _section("", schema)
    parts += [
        "",
        *(["-m runs a sweep: KEY=VALUE,VALUE."] if schema is Config else []),
        "--config-dir FOLDER adds YAML files of your own; --hydra-help lists Hydra's options.",
    ]
    return "\n".join(parts)


def _option(file: Path, folders: list[Path], group: str) -> str:
    (home,) = [folder for folder in folders if file.is_relative_to(folder)][:1]
    return str(file.relative_to(home / group).with_suffix(""))


def _section(prefix: str, schema: type) -> Iterator[str]:
    comments = field_comments(schema)
    for entry in fields(schema):
        if is_dataclass(entry.type):
            yield ""
            section: Any = entry.type
            yield from _section(f"{prefix}{entry.name}.", section)
        else:
            head = f"  {prefix}{entry.name}={_default(entry)}"
            yield _wrapped(f"{head:<34}  ", comments[entry.name])


def _default(entry: Field) -> str:
    if entry.default_factory is not MISSING:
        value = entry.default_factory()
    else:
        value = "???" if entry.default is MISSING else entry.default
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _wrapped(head: str, text: str, width: int = 100) -> str:
    """Put text behind a head, further lines below the text."""
    lines, indent = [""], 36 if len(head) > 16 else 14
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width - indent:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    if len(head) > indent:
        return "\n".join([head.rstrip(), *(" " * indent + line for line in lines)])
    return "\n".join([f"{head:<{indent}}{lines[0]}", *(" " * indent + line for line in lines[1:])])

"""The overrides of a command line, made ready for Hydra: text stays as it was typed.

Hydra would read the folder 2024_01_05 as a number, and refuse /runs/epoch=9 unquoted.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from mobilenet_exp.core.errors import InputError

# what Hydra takes unquoted
PLAIN = re.compile(r"[\w/\-\\+.$%*@?|:][\w/\-\\+.$%*@?|: ]*", re.ASCII)
# numbers and truth values
NO_TEXT = re.compile(
    r"([+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)|true|false)\s*", re.ASCII | re.I
)
CALL = re.compile(
    r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\(.*\)"
)


def annotation_of(key: str, schema: type) -> Any:
    """Return the schema's type of a key such as `model.width_mult`, or None."""
    annotation: Any = schema
    for name in key.split("."):
        annotation = next((entry.type for entry in fields(annotation) if entry.name == name), None)
        if not is_dataclass(annotation):
            break
    return annotation


def home_of(name: str, schema: type) -> str | None:
    """Return `section.name` for a key that was given without its section."""
    for section in fields(schema):
        if is_dataclass(section.type) and name in [entry.name for entry in fields(section.type)]:
            return f"{section.name}.{name}"
    return None


def keep_text(override: str, schema: type) -> str:
    """Quote the value of `key=value` where the key takes text that Hydra would misread.

    Lists, `null`, interpolations, functions of Hydra's and what is quoted stay as they are;
    of a sweep's values, each is quoted by itself.
    """
    key, equals, value = override.partition("=")
    home, is_option, _ = key.partition(".args.")
    if equals and is_option and annotation_of(f"{home}.args", schema) is not None:
        # options of one model, data set, ... need no + whether or not its file names them
        return f"++{override}"
    if not equals or annotation_of(key.lstrip("+~"), schema) not in (str, str | None):
        return override
    is_special = value[:1] in ("", "[", "{", "'", '"') or "${" in value or CALL.fullmatch(value)
    if is_special:
        return override
    values = value.split(",")
    for number, text in enumerate(values):
        stays_text = PLAIN.fullmatch(text) and not NO_TEXT.fullmatch(text.replace("_", ""))
        if not stays_text and text[:1] not in ("'", '"') and text.lower() != "null":
            # a backslash means something only before a quote
            text = re.sub(r"(\\*)('|$)", r"\1\1\2", text).replace("'", "\\'")
            values[number] = f"'{text}'"
    return f"{key}={','.join(values)}"


def without_plus(overrides: Iterable[str]) -> list[str]:
    """Return the overrides of a command without the ++ that `keep_text` gave to options."""
    return [each.removeprefix("++") if ".args." in each else each for each in overrides]


def unquoted(override: str) -> str:
    """Return an override as it was typed, for a message about it."""
    key, equals, value = override.partition("=")
    if equals and len(value) > 1 and value[0] == value[-1] == "'":
        return f"{key}={value[1:-1]}"
    return override


def check_overrides(
    arguments: Sequence[str], schema: type, groups: Iterable[str], flags: Iterable[str] = ()
) -> None:
    """Raise InputError for an argument that Hydra would misread, with the one that was meant.

    Such are `--lr 0.1`, which is none of Hydra's `flags`; an empty argument; `~key`, which would
    leave the key's default in place; and a list for one of `groups`, of which Hydra would take
    the last option alone.
    """
    known = set(flags)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, _, value = argument.partition("=")
        if not argument.strip():
            raise InputError("''", "", "an empty word; keys are given as KEY=VALUE")
        if argument[0] == "~" and annotation_of(name[1:], schema) is not None:
            if not is_dataclass(annotation_of(name[1:], schema)):
                raise InputError(argument, "", f"{name[1:]} cannot be removed")
        elif name in groups and value.startswith("["):
            sweep = f"-m {name}={value.strip('[]')}"
            raise InputError(name, value, f"takes one option; a sweep over several is {sweep}")
        # -1 is a number, and so the value of something
        elif known and re.match(r"-[-a-zA-Z]", name) and not _is_flag(name, known):
            key = name.lstrip("-").replace("-", "_")
            key = key if annotation_of(key, schema) else home_of(key, schema) or ""
            value = value or following
            hint = f"did you mean {key}={value or '...'}?" if key else "--help lists the keys"
            raise InputError(name, value, f"keys are given as KEY=VALUE, without --; {hint}")


def _is_flag(name: str, known: set[str]) -> bool:
    # argparse takes the beginning of a flag for it
    is_long = name.startswith("--") and len(name) > 3
    return name in known or (is_long and any(each.startswith(name) for each in known))

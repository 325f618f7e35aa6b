"""The words of a command line, made ready for Hydra: text stays as it was typed.

Hydra would read the folder 2024_01_05 as a number, and refuse /runs/epoch=9 unquoted.
"""

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from mobilenet_exp.core.errors import InputError

# what Hydra takes unquoted
PLAIN = re.compile(r"[\w/\-\\+.$%*@?|:][\w/\-\\+.$%*@?|: ]*", re.ASCII)
CALL = re.compile(
    r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\(.*\)"
)


def annotation_of(key: str, schema: type) -> Any:
    """Return the schema's type of a key such as `model.width_mult`, or None."""
    found: Any = schema
    for name in key.split("."):
        found = next((entry.type for entry in fields(found) if entry.name == name), None)
        if not is_dataclass(found):
            break
    return found


def home_of(name: str, schema: type) -> str | None:
    """Return `section.name` for a key that was given without its section."""
    for section in fields(schema):
        if is_dataclass(section.type) and name in [entry.name for entry in fields(section.type)]:
            return f"{section.name}.{name}"
    return None


def keep_text(word: str, schema: type) -> str:
    """Quote the value of `key=value` where the key takes text that Hydra would misread.

    Lists, `null`, interpolations, functions of Hydra's and what is quoted stay as they are;
    of a sweep's values, each is looked at.
    """
    key, equals, value = word.partition("=")
    home, is_option, _ = key.partition(".args.")
    if equals and is_option and annotation_of(f"{home}.args", schema) is not None:
        # options of one model, data set, ... need no + whether or not its file names them
        return f"++{word}"
    if not equals or annotation_of(key.lstrip("+~"), schema) not in (str, str | None):
        return word
    is_special = value[:1] in ("", "[", "{", "'", '"') or "${" in value or CALL.fullmatch(value)
    if is_special:
        return word
    return f"{key}={','.join(map(_kept, value.split(',')))}"


def without_plus(words: Iterable[str]) -> list[str]:
    """Return the words of a command without the ++ that `keep_text` gave to options."""
    return [word.removeprefix("++") if ".args." in word else word for word in words]


def _kept(value: str) -> str:
    """Quote one value where Hydra would not take it as it was typed; null stays null."""
    is_plain = value.lower() == "null" or (PLAIN.fullmatch(value) and not _is_no_text(value))
    is_quoted = value[:1] in ("'", '"')
    return value if is_plain or is_quoted else _quoted(value)


def unquoted(word: str) -> str:
    """Return a word as it was typed, for a message about it."""
    key, equals, value = word.partition("=")
    if equals and len(value) > 1 and value[0] == value[-1] == "'":
        return f"{key}={value[1:-1]}"
    return word


def check_flags(words: list[str], known: set[str], schema: type) -> None:
    """Refuse `--lr 0.1` and the like with the word that was meant.

    `known` are the flags that there are, such as `--multirun`.
    """
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, _, value = word.partition("=")
        is_known = flag in known or any(
            each.startswith(flag) for each in known if flag.startswith("--") and len(flag) > 3
        )
        # -1 is a number, and so the value of something
        if not re.match(r"-[-a-zA-Z]", flag) or is_known:
            continue
        name = flag.lstrip("-").replace("-", "_")
        key = name if annotation_of(name, schema) else home_of(name, schema)
        value = value or following
        hint = f"did you mean {key}={value or '...'}?" if key else "--help lists the keys"
        raise InputError(flag, value, f"keys are given as KEY=VALUE, without --; {hint}")


def check_overrides(words: list[str], schema: type) -> None:
    """Refuse empty words, and `~key`, which would quietly leave the key's default in place."""
    for word in words:
        key = word[1:].partition("=")[0]
        if not word.strip():
            raise InputError("''", "", "an empty word; keys are given as KEY=VALUE")
        annotation = annotation_of(key, schema) if word[0] == "~" else None
        if annotation is not None and not is_dataclass(annotation):
            raise InputError(word, "", f"{key} cannot be removed")


def _is_no_text(value: str) -> bool:
    """Return whether Hydra would read a number, true, false or null."""
    if value.lower() in ("true", "false"):
        return True
    try:
        float(value.replace("_", ""))
    except ValueError:
        return False
    return True


def _quoted(value: str) -> str:
    # a backslash means something only before a quote
    text = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(text) - len(text.rstrip("\\"))
    return f"'{text}{text[len(text) - trailing :]}'"

"""One clear line for every way in which a command line can be wrong.

Reads the messages of Hydra and OmegaConf; knows neither the models nor the data.
"""

import difflib
import re
from dataclasses import fields, is_dataclass

from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import type_name


def explain(error: Exception, overrides: list[str], schema: type = Config) -> str:
    """Return `key=value: what is allowed` for an error of composing `schema`.

    `overrides` are the words of the command line, where a value is looked up that the
    error does not name.
    """
    if isinstance(error, InputError):
        return str(error)
    text = "\n".join(_messages(error))
    given = dict(word.lstrip("+~").split("=", 1) for word in overrides if "=" in word)
    if match := re.search(
        r"Could not find '(\S+)/(\S*?)'\s+Available options .*?:((?:\n\t\S+)+)", text
    ):
        return f"{match[1]}={match[2]}: not known; allowed: {', '.join(match[3].split())}"
    if match := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]}: several values are a sweep, which needs -m, or a list, as [a,b]"
    if match := re.search(r"[Ee]rror parsing override '(.*)'", text):
        return f"{match[1]}: not understood; an override reads key=value, odd characters in quotes"
    if "override_grammar" in text:
        words = " ".join(overrides)
        return f"{words}: not understood; an override reads key=value, odd characters in quotes"
    if "Config group override must be a string" in text:
        words = [f"{key}={value}" for key, value in given.items() if "." not in key]
        return f"{', '.join(words)}: must be the name of an option"
    key = _key(text)
    if re.search(r"not in struct|not in '\w+'|Could not override", text):
        return f"{key}={given.get(key, '')}: no such key; {_suggest(key, schema)}"
    if match := re.search(r"merging override (\S+?)=(.*)", text):
        annotation = _annotation(match[1], schema)
        if annotation is not None:
            return f"{match[1]}={match[2]}: must be {type_name(annotation)}"
    return " ".join(str(error).split())


def _messages(error: BaseException | None) -> list[str]:
    return [str(error), *_messages(error.__cause__)] if error else []


def _key(text: str) -> str:
    for pattern in (r"full_key: (\S+)", r"merging override (\S+?)=", r"override '(\S+?)'"):
        if match := re.search(pattern, text):
            return match[1]
    return ""


def _annotation(key: str, schema: type) -> object:
    """Return the schema's type of a key such as `model.width_mult`, or None."""
    for name in key.split("."):
        found = [entry.type for entry in fields(schema) if entry.name == name]
        if not found:
            return None
        (schema,) = found
        if not is_dataclass(schema):
            return schema
    return None


def _suggest(key: str, schema: type) -> str:
    *parents, last = key.split(".")
    if parents[-1:] == ["args"]:
        return f"+{key}=... adds an argument"
    node: object = schema()
    for parent in parents:
        node = getattr(node, parent, None)
    if not is_dataclass(node):
        parents, last, node = [], key, schema()
    names = [entry.name for entry in fields(node)]
    close = difflib.get_close_matches(last, names, n=1)
    hint = f"did you mean {'.'.join([*parents, *close])}? " if close else ""
    return f"{hint}allowed in {'.'.join(parents) or 'the config'}: {', '.join(names)}"

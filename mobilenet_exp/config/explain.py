"""One clear line for every way in which a command line or a YAML file can be wrong.

Reads the messages of Hydra and OmegaConf.
"""

import difflib
import re
from dataclasses import fields, is_dataclass
from typing import Any

from mobilenet_exp.config.overrides import annotation_of, home_of, unquoted
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import type_name

QUOTING = "an override reads key=value; quote special characters, as 'data.root=\"/a/epoch=9\"'"


def explain(error: Exception, overrides: list[str], schema: type = Config) -> str:
    """Return `key=value: problem` for an error of composing `schema`.

    `overrides` are those of the command line; they give the value where the error does not.
    """
    if isinstance(error, InputError):
        return str(error)
    text = "\n".join(_messages(error))
    typed = [unquoted(each).lstrip("+~") for each in overrides if "=" in each]
    given = dict(each.split("=", 1) for each in typed)
    # Hydra's grammar keeps the override that it did not understand
    refused = getattr(error, "override", None)
    if refused and "override_grammar" in text and "Ambiguous" not in text:
        return f"{refused}: not understood; {QUOTING}"
    for reading in (_of_a_file, _of_an_option, _of_an_override, _of_hydra):
        if line := reading(text, given, schema):
            return line
    key = _key(text)
    if re.search(r"not in struct|not in '\w+'|Could not override", text):
        # the error names the section where the whole section is unknown
        key = next((word for word in given if word.startswith(f"{key}.")), key)
        return f"{key}={given.get(key, '')}: no such key; {_suggest(key, schema)}"
    if match := re.search(r"merging override (\S+?)=(.*)", text):
        return f"{match[1]}={match[2]}: must be {_kind(match[1], schema)}"
    lines = text.split("\n")
    if not any(line.strip() for line in lines):
        # an error without a word; where it was raised at least
        return f"{type(error).__name__}, of which {type(error).__module__} says no more"
    return lines[0] if len(lines[0]) > 20 else " ".join(text.split())


def _of_an_option(text: str, given: dict, schema: type) -> str | None:
    """Explain a choice in a config group that does not exist."""
    if match := re.search(
        r"Could not find '(\S+)/(\S*?)'\s+Available options .*?:((?:\n\t\S+)+)", text
    ):
        return f"{match[1]}={match[2]}: not known; allowed: {', '.join(match[3].split())}"
    if "Config group override must be a string" in text:
        groups = [f"{key}={value}" for key, value in given.items() if "." not in key]
        return f"{', '.join(groups)}: must be the name of an option"
    return None


def _of_an_override(text: str, given: dict, schema: type) -> str | None:
    """Explain an override that Hydra's grammar does not understand."""
    if re.search(r"[Ii]nterpolation", text):
        key, value = next((pair for pair in given.items() if "${" in pair[1]), ("", ""))
        return f"{key}={value}: refers to a value that cannot be resolved" if key else None
    if match := re.search(r"Ambiguous value for argument '(.*)'", text):
        if schema is not Config:
            return f"{match[1]}: takes one value; train.py and bench.py alone sweep, with -m"
        is_group = "." not in match[1].partition("=")[0]
        hint = "" if is_group else "; a list reads [a,b]"
        return f"{match[1]}: several values are a sweep, which needs -m{hint}"
    if match := re.search(r"Multiple values for (\S+)\. To override", text):
        return f"+{match[1]}={given.get(match[1], '')}: leave out the +"
    if match := re.search(r"merging override ~(\S+)", text):
        return f"~{match[1]}: {match[1]} cannot be removed"
    if match := re.search(r"[Ee]rror parsing override '(.*)'", text):
        return f"{match[1]}: not understood; {QUOTING}"
    return None


def _of_hydra(text: str, given: dict, schema: type) -> str | None:
    """Explain a wrong setting of Hydra itself."""
    key = next((word for word in given if word.startswith("hydra.")), "")
    named = _key(text)
    if not named.startswith("hydra") and not (key and key in text):
        return None
    key = named if named in given else key or named
    return f"{key}={given.get(key, '')}: not a setting of Hydra; --hydra-help lists them"


def _of_a_file(text: str, given: dict, schema: type) -> str | None:
    """Explain a YAML file that does not fit the schema, naming the file."""
    if match := re.search(r'in "(\S+\.yaml)", line (\d+)', text):
        return f"{match[1]}: not valid YAML at line {match[2]}: {text.splitlines()[0]}"
    if match := re.search(r"In '(\S+)': Could not override '\w+@", text):
        return f"{match[1]}.yaml: its first line must be `# @package _global_`"
    match = re.search(r"In '(\S+)': \w+ raised while composing config", text)
    if match is None:
        return None
    file, key = f"{match[1]}.yaml", _key(text)
    group = match[1].partition("/")[0]
    if key.split(".")[0] == group and group not in [entry.name for entry in fields(schema)]:
        return f"{file}: its first line must be `# @package _global_`"
    if re.search(r"not in struct|not in '\w+'", text):
        return f"{file}: {key} is no key; {_suggest(key, schema)}"
    if key:
        value = re.search(r"Value '(.*?)'", text)
        shown = f"{key}={value[1]}" if value else key
        return f"{file}: {shown} must be {_kind(key, schema)}"
    return f"{file}: {' '.join(text.partition('composing config:')[2].split())}"


def _messages(error: BaseException | None) -> list[str]:
    return [str(error), *_messages(error.__cause__)] if error else []


def _key(text: str) -> str:
    for pattern in (r"full_key: (\S+)", r"merging override (\S+?)=", r"override '(\S+?)'"):
        if match := re.search(pattern, text):
            return match[1]
    return ""


def _kind(key: str, schema: type) -> str:
    """Say what kind of value a key takes."""
    annotation = annotation_of(key, schema)
    if annotation is None:
        return "a valid value; --hydra-help lists Hydra's own settings"
    if is_dataclass(annotation):
        names = [entry.name for entry in fields(annotation)]
        return f"given key by key, as {key}.{names[0]}=..."
    return type_name(annotation)


def _suggest(key: str, schema: type) -> str:
    if key == "run.loader":
        return "leave it out: images are read by run.workers processes; 0: by the run itself"
    *parents, last = key.split(".")
    if parents[-1:] == ["args"]:
        return f"+{key}=... adds an argument, where {parents[0]} takes it"
    node: Any = annotation_of(".".join(parents), schema) if parents else schema
    if not is_dataclass(node):
        parents, last, node = [], key, schema
    names = [entry.name for entry in fields(node)]
    close = difflib.get_close_matches(last, names, n=1)
    hint = f"did you mean {'.'.join([*parents, *close])}? " if close else ""
    if not close and not parents and (home := home_of(last, schema)):
        hint = f"did you mean {home}? "
    return f"{hint}allowed in {'.'.join(parents) or 'the config'}: {', '.join(names)}"

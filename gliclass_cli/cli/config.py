"""Defaults of options from a file: ``$XDG_CONFIG_HOME/gliclass/config.toml``.

A table for each command holds its options by name; ``[defaults]`` is for all commands that have the option::

    [defaults]
    threads = 4

    [classify]
    labels = "labels.txt"

    [models.pull]
    backend = "onnx"

The command line comes before the environment (``GLICLASS_<OPTION>``), and that before the file.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from gliclass_cli.errors import UsageProblem

ALL_COMMANDS = "defaults"
_ENVIRONMENT = "GLICLASS_"
# No option's own: the others are those of options.
_OWN_VARIABLES = ("GLICLASS_DEBUG",)


def config_path() -> Path | None:
    """Return where the file is, or would be; None where there is no home."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(folder) if Path(folder).is_absolute() else Path.home() / ".config"
    except RuntimeError:
        return None
    return base / "gliclass" / "config.toml"


def read_config() -> dict[str, Any]:
    """Return what the file holds, {} where there is none. Raises UsageProblem."""
    path = config_path()
    try:
        data = None if path is None else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        data = None
    except OSError as error:
        raise UsageProblem(f"{path}: {error.strerror}; mend or remove it") from error
    if data is None:
        return {}
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageProblem(f"{path}: not TOML: {error}") from error


def default_map(root: Any) -> dict[str, Any]:
    """Return the file's values for each command, by the names of its parameters, as Click takes them.

    Raises:
        UsageProblem: a table, a key or a value is wrong; names the file and the key.
    """
    document = read_config()
    shared = document.pop(ALL_COMMANDS, {})
    if not document and not shared:
        return {}
    _check_table(shared, ALL_COMMANDS)
    commands = list(_commands(root))
    known = {key for _, command in commands for key in _options(command)}
    for key in shared:
        if _key(key) not in known:
            raise _unknown(f"[{ALL_COMMANDS}] {key}", "option of any command", key, known)
    return _of_group(root, document, shared, ())


def variables() -> dict[str, str]:
    """Return the environment's ``GLICLASS_*`` variables."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)}


def unknown_variables(root: Any) -> dict[str, str]:
    """Return the ``GLICLASS_*`` variables that no option has, each with the nearest name that there is, or ""."""
    keys = {key for _, command in _commands(root) for key in _options(command)}
    known = {_ENVIRONMENT + key.replace("-", "_").upper() for key in keys} | set(_OWN_VARIABLES)
    return {name: _nearest(name, known) for name in variables() if name not in known}


def _of_group(group: Any, table: Mapping[str, Any], shared: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of a group's commands."""
    for name, below in table.items():
        shown = ".".join((*path, name))
        if name not in group.commands:
            if not isinstance(below, dict):
                raise UsageProblem(
                    f"{config_path()}: {shown}: an option stands in the table of a command, or in [{ALL_COMMANDS}]"
                )
            tables = {".".join((*path, command)) for command in group.commands} | {ALL_COMMANDS}
            raise _unknown(f"[{shown}]", "command", shown, tables)
        _check_table(below, shown)
    found = {}
    for name, command in group.commands.items():
        own, words = table.get(name, {}), (*path, name)
        if hasattr(command, "commands"):
            found[name] = _of_group(command, own, shared, words)
        else:
            found[name] = _of_command(command, own, shared, words)
    return found


def _of_command(
    command: Any, own: Mapping[str, Any], shared: Mapping[str, Any], path: tuple[str, ...]
) -> dict[str, Any]:
    """Return the values of a command, its own before those of all."""
    options = _options(command)
    values = {}
    for table, settings in ((ALL_COMMANDS, shared), (".".join(path), own)):
        for key, value in settings.items():
            item = options.get(_key(key))
            if item is not None:
                values[item.name] = _checked(item, value, f"[{table}] {key}")
            elif settings is own:
                raise _unknown(f"[{table}] {key}", f"option of {' '.join(path)}", key, options)
    return values


def _checked(item: Any, value: Any, where: str) -> Any:
    """Return an option's value as Click takes it. Raises UsageProblem."""
    if item.is_flag:
        needed, right = "true or false", isinstance(value, bool)
    elif item.multiple:
        value = [value] if isinstance(value, str) else value
        needed = "a text, or a list of texts"
        right = isinstance(value, list) and all(isinstance(part, str) for part in value)
    else:
        needed, right = "a text or a number", isinstance(value, str | int | float) and not isinstance(value, bool)
    if not right:
        raise UsageProblem(f"{config_path()}: {where}: must be {needed}, not {value!r}")
    try:
        item.type_cast_value(None, value)
    except typer.BadParameter as error:
        raise UsageProblem(f"{config_path()}: {where}: {error.message}") from error
    return value


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _options(command: Any) -> dict[str, Any]:
    """Return a command's options by the names that users know."""
    return {item.opts[-1].lstrip("-"): item for item in command.params if item.param_type_name == "option"}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _check_table(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise UsageProblem(f"{config_path()}: {name}: a table belongs here: [{name}], and its options below it")


def _unknown(where: str, what: str, name: str, known: Iterable[str]) -> UsageProblem:
    nearest = _nearest(_key(name), known)
    hint = f"did you mean {nearest}?" if nearest else "gliclass --help lists the commands, and each its options"
    return UsageProblem(f"{config_path()}: {where}: there is no such {what}; {hint}")


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), "")

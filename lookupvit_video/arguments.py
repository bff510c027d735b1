"""Command lines: settings in any place and form, and "~" in paths."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Collection, Sequence

from lookupvit_video.errors import UserError

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_DASHED_KEY = re.compile(r"--?(?=[A-Z][A-Z0-9_]+([.=]|$))")
_NAME = re.compile(r"--[a-z][\w-]*|(--?)?[A-Z][\w.]*")
_SETTING = re.compile(r"[A-Z][A-Z0-9]*([._][A-Z0-9]+)+(=.*)?", re.DOTALL)
_NEGATIVE = re.compile(r"-(\d|\.\d|inf$|nan$)")
_EXAMPLE = "settings are written KEY VALUE or KEY=VALUE, such as SOLVER.BASE_LR 1e-4"


def expand_user(path: str) -> str:
    """Return a path with "~" or "~user" at its beginning replaced by that home folder, as a shell would.

    Raises:
        UserError: there is no such user, and no file or folder of that very name.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(expanded.split("/")[0]):
        name = expanded.split("/")[0]
        raise UserError(f"{path!r}: there is no user {name[1:]!r}; for a file or folder of that name write ./{path}")
    return expanded


def expand_arguments(words: Sequence[str]) -> list[str]:
    """Return a command line with "~" expanded where the shell does not: in ``--out=~/x``, ``KEY=~/x``, and in quotes.

    Raises:
        UserError: see ``expand_user``.
    """
    return [_expanded(word) for word in words]


def _expanded(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and value.startswith("~") and _NAME.fullmatch(name):
        return f"{name}={expand_user(value)}"
    return expand_user(word)


def parse_with_settings(
    parser: argparse.ArgumentParser, dest: str = "overrides", arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line on which settings may be before, between and after the options.

    Args:
        parser: with a positional argument ``dest`` of ``nargs="*"``, which takes the settings.
        arguments: default: those of this process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options, settings = _apart([_DASHED_KEY.sub("", word) for word in words if word != "--"], parser)
    found, rest = parser.parse_known_args(options)
    for word in rest:
        if word.startswith("-") and not _NEGATIVE.match(word):
            flag = word.partition("=")[0]
            near = difflib.get_close_matches(flag, re.findall(r"--[a-z][\w-]*", parser.format_help()), 1, 0.75)
            parser.error(f"unknown option {word}; {f'did you mean {near[0]}?' if near else _EXAMPLE}")
    setattr(found, dest, [*getattr(found, dest), *rest, *settings])
    return found


def _apart(words: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Take what begins with a key out of a command line: an option with any number of values would swallow it.

    The first value of an option is its own, whatever it looks like.
    """
    flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    options, settings = list[str](), list[str]()
    current, values_due = options, 0
    for word in words:
        if word.startswith("-") and word != "-" and not _NEGATIVE.match(word):
            current, values_due = options, int(word not in flags and "=" not in word)
        elif values_due:
            values_due = 0
        elif _SETTING.fullmatch(word):
            current = settings
        current.append(word)
    return options, settings


def setting_pairs(words: Sequence[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return the (key, text of the value) pairs of a command line's settings: ``KEY VALUE`` or ``KEY=VALUE``.

    Args:
        keys: all that exist; none of them is read as the value of another.

    Raises:
        UserError: a key has no value, or a value no key.
    """
    pairs = []
    rest = [_DASHED_KEY.sub("", str(word)) for word in words]
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not _KEY.fullmatch(name.rstrip(":")):
            raise UserError(f"command line: {name + equals + text!r} is not a key; {_EXAMPLE}")
        if not equals:
            if not rest:
                raise UserError(f"command line: settings come in pairs 'KEY value'; {name!r} has no value")
            text = rest.pop(0)
            if text.startswith("="):
                raise UserError(f"command line: {name} {text}: write {name}=VALUE without spaces")
            if text.partition("=")[0] in keys:
                raise UserError(f"command line: {name} has no value; {text.partition('=')[0]} after it is a key")
        if name not in keys and name.upper() in keys:
            raise UserError(f"command line: unknown key {name}; did you mean {name.upper()}?")
        pairs.append((name, text))
    return pairs

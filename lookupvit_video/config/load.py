"""Strict loading of configs: YAML over the defaults, ``KEY value`` pairs over both; checked, then frozen."""

import copy
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lookupvit_video.arguments import expand_user, setting_pairs
from lookupvit_video.config.checks import Section, get_key, validate
from lookupvit_video.config.keys import KEYS, MULTI_LABEL_METRICS
from lookupvit_video.errors import UserError
from lookupvit_video.remote import is_remote, joined, local_copy
from lookupvit_video.text import decode


def get_defaults() -> CfgNode:
    """Return a fresh, unfrozen config with the default of every key."""
    cfg = CfgNode()
    for name, key in KEYS.items():
        *groups, last = name.split(".")
        node = cfg
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[last] = copy.deepcopy(key.default)
    return cfg


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML (no Python tags) that refuses repeated keys."""


def _unique_keys(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a name; quote a number, on, off, yes or no", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key} is there twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_keys)


def parse_yaml(text: str, source: str) -> Any:
    """Parse plain YAML without repeated keys; UserError with file and line for anything else."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a stricter SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{where}: {getattr(error, 'problem', None) or error}") from None


def _read_tree(path: str | Path, seen: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Return (source, tree) of a file preceded by those of each file that ``_BASE_`` names."""
    path = str(path) if is_remote(path) else str(Path(path).resolve())
    if path in seen:
        raise UserError(f"{path}: _BASE_ leads back to this file; remove the circle")
    try:
        text = decode(local_copy(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this config cannot be read ({getattr(error, 'strerror', None) or error})") from None
    tree = parse_yaml(text, path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config holds 'KEY: value' lines; this file holds {type(tree).__name__}")
    base = tree.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: _BASE_ must be the path of one file")
    folder = path[: path.rfind("/") + 1] if is_remote(path) else os.path.dirname(path)
    parents = _read_tree(joined(folder, expand_user(base)), (*seen, path)) if base else []
    return [*parents, (path, tree)]


def _coerce(value: Any, default: Any, where: str) -> Any:
    """Return ``value`` as the type of ``default``; an integer serves as a float, nothing else is converted."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-4 as text
        except (TypeError, ValueError):
            pass
        else:
            if not math.isfinite(number):
                raise UserError(f"{where}: {value!r} is not a finite number")
            return number
    if isinstance(default, list) and isinstance(value, (list, tuple)):
        sample = default[0] if default else KEYS[where.rsplit(": ", 1)[-1]].item
        return [_coerce(item, sample, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is type(default):
        return value
    raise UserError(f"{where}: expected {type(default).__name__} (default {default!r}), got {value!r}")


def _merge(node: dict[str, Any], tree: dict[str, Any], source: str, prefix: str = "") -> None:
    for key, value in tree.items():
        name = prefix + key
        if key not in node:
            near = difflib.get_close_matches(key.upper(), list(node), n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; keys here: {', '.join(node)}"
            raise UserError(f"{source}: unknown key {name}{hint}")
        if isinstance(node[key], CfgNode):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {name} is a group of keys, got {value!r}")
            _merge(node[key], value, source, name + ".")
        else:
            node[key] = _coerce(value, node[key], f"{source}: {name}")


def _override_tree(name: str, text: str) -> dict[str, Any]:
    """Turn one ``KEY value`` pair of the command line into a tree."""
    is_text = name in KEYS and isinstance(KEYS[name].default, str)
    value: Any = text if is_text else parse_yaml(text, f"command line: {name}")
    for part in reversed(name.split(".")):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with the package, by name ("k400_lvit"); those of studies are "studies/..."."""
    package = Path(__file__).parents[1]
    folder = package / "configs"  # of an installed wheel
    if not folder.is_dir():
        folder = package.parent / "configs"  # of the repository
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(name_or_path: str | Path) -> Path:
    """Return the file of a config: a path that exists, else a shipped config of that name.

    Raises:
        UserError: there is neither; lists the names.
    """
    path, shipped = Path(expand_user(str(name_or_path))), shipped_configs()
    found = shipped.get(str(name_or_path).removesuffix(".yaml"))
    if path.is_file() or (path.exists() and not found):
        return path
    if not found:
        names = ", ".join(name for name in shipped if "/" not in name)
        raise UserError(
            f"{path}: this config cannot be read (No such file); give the path of a file, or the name of one of the "
            f"shipped configs: {names}"
        )
    return found


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults, then ``KEY value`` overrides; check everything; return it frozen.

    Args:
        path: a file, or the name of a shipped config, see ``find_config``.
        overrides: ["KEY", "value", ...]; "KEY=value" is short for two of them.

    Raises:
        UserError: names the file, line or key, and what to write instead.
    """
    cfg = get_defaults()
    for source, tree in _read_tree(path if is_remote(path) else find_config(path)) if path else []:
        _merge(cfg, tree, source)
    for name, text in setting_pairs(overrides, KEYS.keys()):
        _merge(cfg, _override_tree(name, text), "command line")
    for name in (name for name, key in KEYS.items() if key.is_path):
        *groups, last = name.split(".")
        node = get_key(cfg, groups[0]) if groups else cfg
        try:
            node[last] = expand_user(node[last])
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    _fit_metrics(cfg.MODEL, cfg.TRAIN, cfg.TEST)
    validate(cfg)
    cfg.freeze()
    return cfg


def given_keys(path: str | Path | None, overrides: Sequence[str] = ()) -> set[str]:
    """Return the keys that a config's files and ``KEY value`` overrides set, as ``load_config`` reads them."""
    trees = [tree for _, tree in _read_tree(path if is_remote(path) else find_config(path))] if path else []
    trees += [_override_tree(name, text) for name, text in setting_pairs(overrides, KEYS.keys())]
    return {name for tree in trees for name, _, _ in differences(tree, {}) if name in KEYS}


def _fit_metrics(MODEL: Section, TRAIN: Section, TEST: Section) -> None:
    """Replace the default metrics where a video may have several labels."""
    if MODEL.TASK == "multi_label" and TEST.METRICS == KEYS["TEST.METRICS"].default:
        TEST.METRICS = list(MULTI_LABEL_METRICS["TEST.METRICS"])
        TRAIN.BEST_METRIC = MULTI_LABEL_METRICS["TRAIN.BEST_METRIC"]


def with_settings(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """Return a frozen, checked copy of a config with other values for some dotted keys."""
    changed = cfg.clone()
    changed.defrost()
    for name, value in values.items():
        *groups, last = name.split(".")
        node = get_key(changed, groups[0]) if groups else changed
        node[last] = _coerce(value, KEYS[name].default, name)
    _fit_metrics(changed.MODEL, changed.TRAIN, changed.TEST)
    validate(changed)
    changed.freeze()
    return changed


def config_from_text(text: str, source: str) -> CfgNode:
    """Rebuild a frozen config from the YAML text that a run saved (``cfg.dump()``)."""
    tree = parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: does not hold a config")
    cfg = get_defaults()
    _merge(cfg, tree, source)
    validate(cfg)
    cfg.freeze()
    return cfg


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value, other value) of each key of ``one`` that ``other`` lacks or has another value of."""
    found = []
    for key, value in one.items():
        if isinstance(value, Mapping):
            found += differences(value, other.get(key, {}), f"{prefix}{key}.")
        elif key not in other or value != other[key]:
            found.append((prefix + key, value, other.get(key)))
    return found

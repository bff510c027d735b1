"""The settings of a run: ``keys`` declares them, ``load`` reads them, ``checks`` says what must hold."""

from lookupvit_video.config.checks import Section, get_key, token_grid, validate
from lookupvit_video.config.keys import KEYS
from lookupvit_video.config.load import (
    config_from_text,
    differences,
    find_config,
    get_defaults,
    given_keys,
    load_config,
    parse_yaml,
    with_settings,
)

__all__ = [
    "KEYS", "Section", "config_from_text", "differences", "find_config", "get_defaults", "get_key", "given_keys",
    "load_config", "parse_yaml", "token_grid", "validate", "with_settings",
]  # fmt: skip

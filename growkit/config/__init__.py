"""Settings of a run: strict YAML and dotted overrides in, one immutable Config out. Never imports torch."""

from __future__ import annotations

from growkit.config.base import Settings
from growkit.config.load import config_from_overrides, dump_config, lay_overrides, load_config
from growkit.config.run import Config
from growkit.config.schema import json_schema

__all__ = ["Config", "Settings", "config_from_overrides", "dump_config", "json_schema", "lay_overrides", "load_config"]

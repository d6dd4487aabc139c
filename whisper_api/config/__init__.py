"""The configuration: one table of settings, and the sources of their values.

:mod:`settings` has the table, :mod:`sources` reads the file, the environment and the command line, :mod:`live` changes
the values of a running server. May import ``coercion`` and ``errors``.
"""

from __future__ import annotations

from whisper_api.config.live import Change as Change
from whisper_api.config.live import LiveConfig as LiveConfig
from whisper_api.config.live import with_new_values as with_new_values
from whisper_api.config.settings import RELOADABLE as RELOADABLE
from whisper_api.config.settings import ComputeType as ComputeType
from whisper_api.config.settings import Config as Config
from whisper_api.config.settings import Downloaders as Downloaders
from whisper_api.config.settings import Loaded as Loaded
from whisper_api.config.settings import OutputFormat as OutputFormat
from whisper_api.config.settings import describe as describe
from whisper_api.config.settings import format_value as format_value
from whisper_api.config.settings import settings as settings
from whisper_api.config.sources import SECRETS as SECRETS
from whisper_api.config.sources import Setting as Setting

"""The table of settings: attribute, type, bounds, help line, key and default.

The command line overrides the environment, the environment overrides ``whisper_api.conf``, and the file overrides the
defaults in this table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from whisper_api.coercion import help_line
from whisper_api.config.sources import SECRETS, Setting, read

__all__ = ["RELOADABLE", "Config", "Downloaders", "Loaded", "describe", "format_value", "settings"]

Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
KeepAlive = Annotated[int, Meta(ge=-1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=31_536_000)]
Hours = Annotated[float, Meta(gt=0, le=876_000)]
Days = Annotated[int, Meta(ge=0, le=36_500)]

DeviceName = Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:(\d+|all))?)$")]
ModelAliases = Annotated[
    str,
    Meta(
        pattern=r"^\s*[^=,\s]+\s*=\s*[^=,\s][^=,]*(,\s*[^=,\s]+\s*=\s*[^=,\s][^=,]*)*,?\s*$",
        examples=["my-asr=base, scribe=large-v3"],
    ),
]
OutputFormat = Literal["srt", "vtt", "txt", "tsv", "json", "aud", "ass", "md", "cues", "rttm"]
Downloaders = Literal["anyone", "administrators", "nobody"]
Encoder = Literal["auto", "torch", "ctranslate2"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
ComputeType = Literal[
    "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]

# The keys whose new values a running server takes when it is told to read its configuration again; see live.py.
RELOADABLE = frozenset(
    {
        "ALLOWED_ORIGINS",
        "DEFAULT_SYNC_MODE",
        "ENABLE_URL_UPLOADS",
        "MAX_FILE_SIZE",
        "MAX_JOBS_PER_KEY",
        "MAX_QUEUED_JOBS",
        "MAX_SPEAKERS_PER_KEY",
        "MAX_UPLOADS_PER_ADDRESS",
        "MAX_UPLOADS_PER_KEY",
        "MIN_UPLOAD_BYTES_PER_SECOND",
        "SYNC_REQUEST_TIMEOUT_SECONDS",
        "UPLOAD_TIMEOUT_SECONDS",
        "URL_FETCH_TIMEOUT_SECONDS",
        "URL_PRIVATE_HOSTS",
        "WHISPER_AUDIT_RETENTION_DAYS",
        "WHISPER_AUTH_FAILURE_LIMIT",
        "WHISPER_JOB_RETENTION_HOURS",
        "WHISPER_LOG_LEVEL",
        "WHISPER_MODEL_DOWNLOADS",
        "WHISPER_OUTPUT_FORMAT",
        "WHISPER_QUOTA",
        "WHISPER_RATE_LIMIT",
        "WHISPER_RESULT_GRACE_SECONDS",
        "WHISPER_SHUTDOWN_GRACE_SECONDS",
        "WHISPER_STALL_SECONDS",
        "WHISPER_USAGE_RETENTION_DAYS",
    }
)

T = TypeVar("T")


def _is(text: str) -> Meta:
    return Meta(description=text)


def _key(name: str, default: T) -> T:
    field: T = msgspec.field(name=name, default=default)
    return field


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. The program reads them at its start and passes them on as an argument."""

    host: Annotated[Text, _is("address the server listens on")] = _key("WHISPER_API_HOST", "127.0.0.1")
    port: Annotated[Port, _is("port the server listens on; 0 = any free one")] = _key("WHISPER_API_PORT", 8181)
    metrics_host: Annotated[Text, _is("address of the port for metrics")] = _key("WHISPER_METRICS_HOST", "127.0.0.1")
    metrics_port: Annotated[
        Port | None, _is("port that gives /metrics to callers without a key; none unless it is named")
    ] = _key("WHISPER_METRICS_PORT", None)
    timeout_seconds: Annotated[Seconds, _is("seconds a request may take")] = _key("WHISPER_API_TIMEOUT", 480)
    keepalive_seconds: Annotated[SecondsOrZero, _is("seconds an idle connection stays open")] = _key(
        "WHISPER_API_KEEPALIVE", 480
    )
    http_workers: Annotated[CountOrZero, _is("threads for blocking request work, in one process; 0 = CPU count")] = (
        _key("HTTP_WORKER_NUMBER", 0)
    )
    max_connections: Annotated[Count, _is("connections that may be open at a time; one address may have half")] = _key(
        "MAX_CONNECTIONS", 2000
    )
    max_response_memory: Annotated[
        Count, _is("bytes of response bodies that clients have not taken yet; one address may have half")
    ] = _key("MAX_RESPONSE_MEMORY", 67108864)
    models_dir: Annotated[Path, _is("where model files are kept")] = _key("WHISPER_MODELS_DIR", Path("models_cache"))
    tmp_dir: Annotated[Path, _is("where uploads are kept until their job ends")] = _key(
        "WHISPER_TMP_FILES", Path("var/tmp")
    )
    data_dir: Annotated[Path, _is("where the job database is kept")] = _key("WHISPER_DATA_DIR", Path("var"))
    output_format: Annotated[
        OutputFormat, _is("format of a transcript: srt, vtt, txt, tsv, json, aud, ass, md or rttm")
    ] = _key("WHISPER_OUTPUT_FORMAT", "txt")
    model: Annotated[Text, _is("Whisper model: name, directory or hub id; auto = large-v3 on a GPU, base on a CPU")] = (
        _key("WHISPER_MODEL", "auto")
    )
    model_aliases: Annotated[ModelAliases | None, _is("own names for models: name=model, with commas between")] = _key(
        "MODEL_ALIASES", None
    )
    language: Annotated[Text, _is("language spoken: a code or a name; auto = detect it; multi = several")] = _key(
        "WHISPER_LANGUAGE", "fr"
    )
    device: Annotated[DeviceName, _is("auto, cpu, cuda or cuda:all (every GPU); auto = a GPU if there is one")] = _key(
        "WHISPER_DEVICE", "auto"
    )
    device_index: Annotated[CountOrZero, _is("which GPU, where there are several")] = _key("WHISPER_DEVICE_INDEX", 0)
    compute_type: Annotated[
        ComputeType, _is("number format of the weights; auto = float16 on a GPU, int8 on a CPU")
    ] = _key("WHISPER_COMPUTE_TYPE", "auto")
    batch_size: Annotated[Count | Literal["auto"], _is("windows of audio in a batch on a GPU; auto = by trial")] = _key(
        "WHISPER_BATCH_SIZE", "auto"
    )
    encoder: Annotated[
        Encoder, _is("runs Whisper's encoder on a GPU: torch or ctranslate2; auto = torch where it fits and agrees")
    ] = _key("WHISPER_ENCODER", "auto")
    model_keep_alive_seconds: Annotated[
        KeepAlive, _is("seconds an unused model stays in memory; -1 = stay resident, 0 = free after each job")
    ] = _key("MODEL_KEEP_ALIVE_SECONDS", -1)
    preload_models: Annotated[bool, _is("load the models when the server starts")] = _key("PRELOAD_MODELS", True)
    model_downloads: Annotated[
        Downloaders, _is("whose jobs may name a model that the server must download: anyone, administrators or nobody")
    ] = _key("WHISPER_MODEL_DOWNLOADS", "administrators")
    job_retention_hours: Annotated[Hours, _is("hours until a job and its result are removed")] = _key(
        "WHISPER_JOB_RETENTION_HOURS", 48
    )
    cleanup_interval_hours: Annotated[Hours, _is("hours between two removals of what has expired")] = _key(
        "WHISPER_CLEANUP_INTERVAL_HOURS", 1
    )
    result_grace_seconds: Annotated[SecondsOrZero, _is("seconds a delivered result can still be had")] = _key(
        "WHISPER_RESULT_GRACE_SECONDS", 300
    )
    audit_retention_days: Annotated[
        Days, _is("days until an entry of the audit trail is removed; 0 = keep no trail")
    ] = _key("WHISPER_AUDIT_RETENTION_DAYS", 90)
    max_file_size: Annotated[Count, _is("bytes an upload may have")] = _key("MAX_FILE_SIZE", 536870912)
    max_audio_seconds: Annotated[SecondsOrZero, _is("seconds audio may last, 12 hours as shipped; 0 = any length")] = (
        _key("MAX_AUDIO_SECONDS", 43200)
    )
    max_audio_memory: Annotated[
        CountOrZero, _is("bytes of decoded audio in memory, over all jobs; more goes to files in WHISPER_TMP_FILES")
    ] = _key("MAX_AUDIO_MEMORY", 536870912)
    enable_concurrency: Annotated[bool, _is("work on several jobs at a time")] = _key("ENABLE_CONCURRENCY", False)
    max_concurrent_jobs: Annotated[Count, _is("how many, when ENABLE_CONCURRENCY is true")] = _key(
        "MAX_CONCURRENT_JOBS", 6
    )
    max_queued_jobs: Annotated[Count, _is("jobs that may wait; more are refused")] = _key("MAX_QUEUED_JOBS", 1000)
    max_job_attempts: Annotated[
        Count, _is("how often a job is tried that ends the server or the engine; from the second time on it runs alone")
    ] = _key("MAX_JOB_ATTEMPTS", 12)
    max_jobs_per_key: Annotated[CountOrZero, _is("unfinished jobs that one key may have; 0 = no limit of its own")] = (
        _key("MAX_JOBS_PER_KEY", 200)
    )
    max_speakers_per_key: Annotated[
        CountOrZero, _is("known speakers that one key may have; 0 = no limit of its own")
    ] = _key("MAX_SPEAKERS_PER_KEY", 200)
    max_uploads_per_key: Annotated[
        CountOrZero, _is("unfinished uploads that one key may have, each of MAX_FILE_SIZE; 0 = no limit of its own")
    ] = _key("MAX_UPLOADS_PER_KEY", 16)
    max_uploads_per_address: Annotated[
        CountOrZero, _is("unfinished uploads that one network address may have; 0 = no limit of its own")
    ] = _key("MAX_UPLOADS_PER_ADDRESS", 64)
    rate_limit: Annotated[
        str | None, _is("requests that a key may send, as in 60/minute; 1000/day; a key's own limit wins")
    ] = _key("WHISPER_RATE_LIMIT", None)
    quota: Annotated[
        str | None, _is("audio and jobs that a key may have, as in 600 minutes/day; 1000 jobs/month; a key's own wins")
    ] = _key("WHISPER_QUOTA", None)
    auth_failure_limit: Annotated[
        str | None, _is("requests with wrong keys from one network address, as in 60/minute; none = any number")
    ] = _key("WHISPER_AUTH_FAILURE_LIMIT", "60/minute")
    usage_retention_days: Annotated[
        Days, _is("days that the usage of keys is kept; 0 = none is recorded, but what quotas need")
    ] = _key("WHISPER_USAGE_RETENTION_DAYS", 400)
    min_upload_bytes_per_second: Annotated[
        CountOrZero, _is("least rate of a request body, averaged over 60 seconds; 0 = any rate")
    ] = _key("MIN_UPLOAD_BYTES_PER_SECOND", 1000)
    upload_timeout_seconds: Annotated[Seconds, _is("seconds that a whole upload may take")] = _key(
        "UPLOAD_TIMEOUT_SECONDS", 14400
    )
    stall_seconds: Annotated[Seconds, _is("seconds without progress after which a running job counts as stalled")] = (
        _key("WHISPER_STALL_SECONDS", 600)
    )
    shutdown_grace_seconds: Annotated[
        SecondsOrZero, _is("seconds the running jobs have to end when the server is stopped")
    ] = _key("WHISPER_SHUTDOWN_GRACE_SECONDS", 30)
    tls_cert_file: Annotated[Path | None, _is("certificate chain (PEM); with it the server speaks TLS")] = _key(
        "WHISPER_TLS_CERT_FILE", None
    )
    tls_key_file: Annotated[Path | None, _is("the certificate's private key (PEM)")] = _key(
        "WHISPER_TLS_KEY_FILE", None
    )
    root_path: Annotated[str | None, _is("path under which a reverse proxy offers the server, as in /whisper")] = _key(
        "WHISPER_ROOT_PATH", None
    )
    trusted_proxies: Annotated[
        str | None, _is("proxies whose X-Forwarded headers are believed: addresses or networks, with commas between")
    ] = _key("WHISPER_TRUSTED_PROXIES", None)
    enable_url_uploads: Annotated[bool, _is("fetch audio from addresses that callers name")] = _key(
        "ENABLE_URL_UPLOADS", False
    )
    url_fetch_timeout_seconds: Annotated[Seconds, _is("seconds that fetching a file may take")] = _key(
        "URL_FETCH_TIMEOUT_SECONDS", 300
    )
    url_private_hosts: Annotated[
        str | None, _is("hosts in private networks to fetch from: host or host:port, with commas between")
    ] = _key("URL_PRIVATE_HOSTS", None)
    enable_webhooks: Annotated[bool, _is("send the ends of jobs to addresses that callers name")] = _key(
        "ENABLE_WEBHOOKS", False
    )
    webhook_private_hosts: Annotated[
        str | None, _is("hosts in private networks to send webhooks to: host or host:port, with commas between")
    ] = _key("WEBHOOK_PRIVATE_HOSTS", None)
    enable_authorization: Annotated[bool, _is("ask every caller for a key")] = _key("ENABLE_AUTHORIZATION", True)
    allowed_origins: Annotated[
        str | None,
        _is("origins of web pages that may call the server without keys, with commas between; * = every page"),
    ] = _key("ALLOWED_ORIGINS", None)
    hf_token_file: Annotated[Path, _is("file with the Hugging Face token; need not be there")] = _key(
        "WHISPER_HF_TOKEN_FILE", Path("hf_token.txt")
    )
    hf_token: Annotated[str | None, _is("Hugging Face token, wins over the file; best kept in the environment")] = _key(
        "HF_TOKEN", None
    )
    sync_timeout_seconds: Annotated[
        SecondsOrZero, _is("seconds a synchronous request waits for its job; 0 = until it ends")
    ] = _key("SYNC_REQUEST_TIMEOUT_SECONDS", 1800)
    default_sync: Annotated[bool, _is("answer with the transcript when a request does not say")] = _key(
        "DEFAULT_SYNC_MODE", False
    )
    log_level: Annotated[LogLevel, _is("debug, info, warning, error or critical; RUST_LOG is read too")] = _key(
        "WHISPER_LOG_LEVEL", "info"
    )
    log_format: Annotated[Literal["text", "json"], _is("text or json")] = _key("WHISPER_LOG_FORMAT", "text")
    retired_cmd: Annotated[str | None, _is("accepted from old files and warned about: nothing is shelled out")] = _key(
        "WHISPER_CMD", None
    )
    retired_output_dir: Annotated[
        str | None, _is("accepted from old files and warned about: no output files are written")
    ] = _key("WHISPER_OUTPUT_DIR", None)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Loaded:
        """Read the configuration.

        Args:
            path: the file. None for the file in ``WHISPER_API_CONFIG``, else ``whisper_api.conf`` in the working
                directory, else the file in the user's configuration directory, else no file.
            env: environment variables; None for the process's variables. Unknown keys are ignored.
            flags: key to value, from the command line; a value of None is ignored.

        Returns:
            The configuration, the origin of each value, and warnings. Relative paths in the file and default paths are
            relative to the file's directory, all others to the working directory. Without a file, models are in the
            user's cache directory, data and uploads in the user's data directory.

        Raises:
            ConfigError: the named file does not exist or is not TOML, or a value cannot be used. The message has key,
                value and origin, but no value of a secret.
        """
        sources = read(settings(), path, os.environ if env is None else env, flags or {})
        return Loaded(cls(**sources.values), sources.origins, tuple(sources.warnings), sources.path)

    def __repr__(self) -> str:
        return (
            f"Config({', '.join(f'{s.attribute}={format_value(s, getattr(self, s.attribute))}' for s in settings())})"
        )


def settings() -> tuple[Setting, ...]:
    """The rows of the table, in order."""
    return tuple(
        Setting(field.encode_name, field.name, field.type, field.default, help_line(field.type))
        for field in msgspec.structs.fields(Config)
    )


@dataclass(frozen=True)
class Loaded:
    """A configuration with its origins.

    Attributes:
        config: the values.
        origins: key to the origin of its value.
        warnings: one sentence each.
        path: the configuration file; None without a file.
    """

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    path: Path | None


def describe(loaded: Loaded) -> str:
    """Each key with its value and origin, in a line each; secrets are masked."""
    lines = [
        (f"{s.key} = {format_value(s, getattr(loaded.config, s.attribute))}", loaded.origins[s.key]) for s in settings()
    ]
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:<{width}}  # {origin}" for left, origin in lines)


def format_value(setting: Setting, value: object) -> str:
    """The value in the notation of the file; secrets are masked.

    Args:
        setting: the row of the table.
        value: the value.
    """
    if value is None:
        return '""'
    if setting.key in SECRETS:
        return '"***"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    return msgspec.json.encode(value.as_posix() if isinstance(value, Path) else value).decode()

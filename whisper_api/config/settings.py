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

from whisper_api.config.sources import SECRETS, Setting, read

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
WorkerResources = Annotated[
    str,
    Meta(
        pattern=r"^\s*[A-Za-z]\w*\s*=\s*\d+(\.\d+)?(\s*,\s*[A-Za-z]\w*\s*=\s*\d+(\.\d+)?)*\s*$",
        examples=["large=1, CPU=8"],
    ),
]
OutputFormat = Literal["srt", "vtt", "txt", "tsv", "json", "aud", "ass", "md", "cues", "rttm"]
Downloaders = Literal["anyone", "administrators", "nobody"]
Encoder = Literal["auto", "torch", "ctranslate2"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
ComputeType = Literal[
    "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]


T = TypeVar("T")


# Key to help line, and the keys whose values a running server can change; filled by the table of settings.
_help: dict[str, str] = {}
_reloadable: set[str] = set()


def _key(name: str, default: T, help: str) -> T:
    """A setting: its key, its default value and its help line."""
    _help[name] = help
    field: T = msgspec.field(name=name, default=default)
    return field


def _live(name: str, default: T, help: str) -> T:
    """A setting whose value a running server can change."""
    _reloadable.add(name)
    return _key(name, default, help)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. The program reads them at its start and passes them on as an argument."""

    host: Text = _key("WHISPER_API_HOST", "127.0.0.1", "address the server listens on")
    port: Port = _key("WHISPER_API_PORT", 8181, "port the server listens on; 0 = any free one")
    metrics_host: Text = _key("WHISPER_METRICS_HOST", "127.0.0.1", "address of the port for metrics")
    metrics_port: Port | None = _key(
        "WHISPER_METRICS_PORT", None, "port that gives /metrics to callers without a key; none unless it is named"
    )
    timeout_seconds: Seconds = _key("WHISPER_API_TIMEOUT", 480, "seconds a request may take")
    keepalive_seconds: SecondsOrZero = _key("WHISPER_API_KEEPALIVE", 480, "seconds an idle connection stays open")
    http_workers: CountOrZero = _key(
        "HTTP_WORKER_NUMBER", 0, "threads for blocking request work, in one process; 0 = CPU count"
    )
    max_connections: Count = _key(
        "MAX_CONNECTIONS", 2000, "connections that may be open at a time; one address may have half"
    )
    max_response_memory: Count = _key(
        "MAX_RESPONSE_MEMORY",
        67108864,
        "bytes of response bodies that clients have not taken yet; one address may have half",
    )
    models_dir: Path = _key("WHISPER_MODELS_DIR", Path("models_cache"), "where model files are kept")
    tmp_dir: Path = _key("WHISPER_TMP_FILES", Path("var/tmp"), "where uploads are kept until their job ends")
    data_dir: Path = _key("WHISPER_DATA_DIR", Path("var"), "where the job database is kept")
    output_format: OutputFormat = _live(
        "WHISPER_OUTPUT_FORMAT", "txt", "format of a transcript: srt, vtt, txt, tsv, json, aud, ass, md or rttm"
    )
    model: Text = _key(
        "WHISPER_MODEL", "auto", "Whisper model: name, directory or hub id; auto = large-v3 on a GPU, base on a CPU"
    )
    model_aliases: ModelAliases | None = _key(
        "MODEL_ALIASES", None, "own names for models: name=model, with commas between"
    )
    language: Text = _key(
        "WHISPER_LANGUAGE", "fr", "language spoken: a code or a name; auto = detect it; multi = several"
    )
    device: DeviceName = _key(
        "WHISPER_DEVICE", "auto", "auto, cpu, cuda or cuda:all (every GPU); auto = a GPU if there is one"
    )
    device_index: CountOrZero = _key("WHISPER_DEVICE_INDEX", 0, "which GPU, where there are several")
    compute_type: ComputeType = _key(
        "WHISPER_COMPUTE_TYPE", "auto", "number format of the weights; auto = float16 on a GPU, int8 on a CPU"
    )
    batch_size: Count | Literal["auto"] = _key(
        "WHISPER_BATCH_SIZE", "auto", "windows of audio in a batch on a GPU; auto = by trial"
    )
    encoder: Encoder = _key(
        "WHISPER_ENCODER",
        "auto",
        "runs Whisper's encoder on a GPU: torch or ctranslate2; auto = torch where it fits and agrees",
    )
    model_keep_alive_seconds: KeepAlive = _key(
        "MODEL_KEEP_ALIVE_SECONDS",
        -1,
        "seconds an unused model stays in memory; -1 = stay resident, 0 = free after each job",
    )
    preload_models: bool = _key("PRELOAD_MODELS", True, "load the models when the server starts")
    model_downloads: Downloaders = _live(
        "WHISPER_MODEL_DOWNLOADS",
        "administrators",
        "whose jobs may name a model that the server must download: anyone, administrators or nobody",
    )
    job_retention_hours: Hours = _live(
        "WHISPER_JOB_RETENTION_HOURS", 48, "hours until a job and its result are removed"
    )
    cleanup_interval_hours: Hours = _key(
        "WHISPER_CLEANUP_INTERVAL_HOURS", 1, "hours between two removals of what has expired"
    )
    result_grace_seconds: SecondsOrZero = _live(
        "WHISPER_RESULT_GRACE_SECONDS", 300, "seconds a delivered result can still be had"
    )
    audit_retention_days: Days = _live(
        "WHISPER_AUDIT_RETENTION_DAYS", 90, "days until an entry of the audit trail is removed; 0 = keep no trail"
    )
    max_file_size: Count = _live("MAX_FILE_SIZE", 536870912, "bytes an upload may have")
    max_audio_seconds: SecondsOrZero = _key(
        "MAX_AUDIO_SECONDS", 43200, "seconds audio may last, 12 hours as shipped; 0 = any length"
    )
    max_audio_memory: CountOrZero = _key(
        "MAX_AUDIO_MEMORY",
        536870912,
        "bytes of decoded audio in memory, over all jobs; more goes to files in WHISPER_TMP_FILES",
    )
    executor: Literal["local", "ray"] = _key(
        "WHISPER_EXECUTOR", "local", "where jobs run: local = in this process, ray = on the engines of a Ray cluster"
    )
    ray_address: str | None = _key(
        "RAY_ADDRESS", None, "host:port of the Ray cluster's head; none = start Ray on this machine alone"
    )
    cluster_workers: Count | Literal["auto"] = _key(
        "WHISPER_CLUSTER_WORKERS",
        "auto",
        "engines of the cluster; auto = one for each GPU, or for each machine where there is no GPU",
    )
    worker_resources: WorkerResources | None = _key(
        "WHISPER_WORKER_RESOURCES", None, "what an engine takes of its machine: resource=amount, with commas between"
    )
    enable_concurrency: bool = _key("ENABLE_CONCURRENCY", False, "work on several jobs at a time")
    max_concurrent_jobs: Count = _key(
        "MAX_CONCURRENT_JOBS", 6, "how many, when ENABLE_CONCURRENCY is true; for each engine of a cluster"
    )
    max_queued_jobs: Count = _live("MAX_QUEUED_JOBS", 1000, "jobs that may wait; more are refused")
    max_job_attempts: Count = _key(
        "MAX_JOB_ATTEMPTS",
        12,
        "how often a job is tried that ends the server or the engine; from the second time on it runs alone",
    )
    max_jobs_per_key: CountOrZero = _live(
        "MAX_JOBS_PER_KEY", 200, "unfinished jobs that one key may have; 0 = no limit of its own"
    )
    max_speakers_per_key: CountOrZero = _live(
        "MAX_SPEAKERS_PER_KEY", 200, "known speakers that one key may have; 0 = no limit of its own"
    )
    max_uploads_per_key: CountOrZero = _live(
        "MAX_UPLOADS_PER_KEY",
        16,
        "unfinished uploads that one key may have, each of MAX_FILE_SIZE; 0 = no limit of its own",
    )
    max_uploads_per_address: CountOrZero = _live(
        "MAX_UPLOADS_PER_ADDRESS", 64, "unfinished uploads that one network address may have; 0 = no limit of its own"
    )
    rate_limit: str | None = _live(
        "WHISPER_RATE_LIMIT", None, "requests that a key may send, as in 60/minute; 1000/day; a key's own limit wins"
    )
    quota: str | None = _live(
        "WHISPER_QUOTA",
        None,
        "audio and jobs that a key may have, as in 600 minutes/day; 1000 jobs/month; a key's own wins",
    )
    auth_failure_limit: str | None = _live(
        "WHISPER_AUTH_FAILURE_LIMIT",
        "60/minute",
        "requests with wrong keys from one network address, as in 60/minute; none = any number",
    )
    usage_retention_days: Days = _live(
        "WHISPER_USAGE_RETENTION_DAYS",
        400,
        "days that the usage of keys is kept; 0 = none is recorded, but what quotas need",
    )
    min_upload_bytes_per_second: CountOrZero = _live(
        "MIN_UPLOAD_BYTES_PER_SECOND", 1000, "least rate of a request body, averaged over 60 seconds; 0 = any rate"
    )
    upload_timeout_seconds: Seconds = _live("UPLOAD_TIMEOUT_SECONDS", 14400, "seconds that a whole upload may take")
    stall_seconds: Seconds = _live(
        "WHISPER_STALL_SECONDS", 600, "seconds without progress after which a running job counts as stalled"
    )
    shutdown_grace_seconds: SecondsOrZero = _live(
        "WHISPER_SHUTDOWN_GRACE_SECONDS", 30, "seconds the running jobs have to end when the server is stopped"
    )
    tls_cert_file: Path | None = _key(
        "WHISPER_TLS_CERT_FILE", None, "certificate chain (PEM); with it the server speaks TLS"
    )
    tls_key_file: Path | None = _key("WHISPER_TLS_KEY_FILE", None, "the certificate's private key (PEM)")
    root_path: str | None = _key(
        "WHISPER_ROOT_PATH", None, "path under which a reverse proxy offers the server, as in /whisper"
    )
    trusted_proxies: str | None = _key(
        "WHISPER_TRUSTED_PROXIES",
        None,
        "proxies whose X-Forwarded headers are believed: addresses or networks, with commas between",
    )
    enable_url_uploads: bool = _live("ENABLE_URL_UPLOADS", False, "fetch audio from addresses that callers name")
    url_fetch_timeout_seconds: Seconds = _live(
        "URL_FETCH_TIMEOUT_SECONDS", 300, "seconds that fetching a file may take"
    )
    url_private_hosts: str | None = _live(
        "URL_PRIVATE_HOSTS", None, "hosts in private networks to fetch from: host or host:port, with commas between"
    )
    enable_webhooks: bool = _key("ENABLE_WEBHOOKS", False, "send the ends of jobs to addresses that callers name")
    webhook_private_hosts: str | None = _key(
        "WEBHOOK_PRIVATE_HOSTS",
        None,
        "hosts in private networks to send webhooks to: host or host:port, with commas between",
    )
    enable_authorization: bool = _key("ENABLE_AUTHORIZATION", True, "ask every caller for a key")
    allowed_origins: str | None = _live(
        "ALLOWED_ORIGINS",
        None,
        "origins of web pages that may call the server without keys, with commas between; * = every page",
    )
    hf_token_file: Path = _key(
        "WHISPER_HF_TOKEN_FILE", Path("hf_token.txt"), "file with the Hugging Face token; need not be there"
    )
    hf_token: str | None = _key(
        "HF_TOKEN", None, "Hugging Face token, wins over the file; best kept in the environment"
    )
    sync_timeout_seconds: SecondsOrZero = _live(
        "SYNC_REQUEST_TIMEOUT_SECONDS", 1800, "seconds a synchronous request waits for its job; 0 = until it ends"
    )
    default_sync: bool = _live("DEFAULT_SYNC_MODE", False, "answer with the transcript when a request does not say")
    log_level: LogLevel = _live(
        "WHISPER_LOG_LEVEL", "info", "debug, info, warning, error or critical; RUST_LOG is read too"
    )
    log_format: Literal["text", "json"] = _key("WHISPER_LOG_FORMAT", "text", "text or json")
    retired_cmd: str | None = _key(
        "WHISPER_CMD", None, "accepted from old files and warned about: nothing is shelled out"
    )
    retired_output_dir: str | None = _key(
        "WHISPER_OUTPUT_DIR", None, "accepted from old files and warned about: no output files are written"
    )

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


# The keys whose new values a running server takes when it is told to read its configuration again; see live.py.
RELOADABLE = frozenset(_reloadable)


def settings() -> tuple[Setting, ...]:
    """The rows of the table, in order."""
    return tuple(
        Setting(field.encode_name, field.name, field.type, field.default, _help[field.encode_name])
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

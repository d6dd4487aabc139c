"""Whether traces are on, and where they are sent: the variables ``OTEL_*`` of the environment say so.

While traces are off, nothing of OpenTelemetry is imported.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from typing import Any

from whisper_api.errors import ConfigError, ExtraMissing
from whisper_api.logs import Repeats
from whisper_api.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# Protocol of OTLP to the name under which its exporter is registered; the first one is the default.
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
EXPORTER_OF_EXTRA = "otlp_proto_http"
# While the collector cannot be reached, these loggers repeat their lines with each batch.
EXPORT_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


def exporters_wanted() -> tuple[str, ...]:
    """The exporters that the environment names; none when traces are off."""
    if _value("OTEL_SDK_DISABLED").lower() == "true":
        return ()
    named = [each.strip() for each in _value("OTEL_TRACES_EXPORTER").split(",") if each.strip()]
    if not named and any(_value(name) for name in ENDPOINT_VARIABLES):
        named = ["otlp"]
    return () if "none" in named else tuple(named)


def start_tracing() -> Tracing:
    """The traces that the environment configures. A warning says why none can be sent."""
    names = exporters_wanted()
    if not names:
        return Tracing()
    try:
        tracing = _traces_to(names)
    except Exception as error:
        # The server starts without traces rather than not at all.
        log.warning("no traces are sent: %s", error, extra={"error": type(error).__name__})
        return Tracing(f"no traces are sent: {error}")
    log.info("traces are sent", extra={"exporters": ",".join(names)})
    return tracing


def _traces_to(names: tuple[str, ...]) -> Tracing:
    """Traces that are sent to these exporters.

    Raises:
        ExtraMissing: OpenTelemetry's SDK or an exporter is not installed.
        ConfigError: there is no exporter of this protocol.
    """
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from whisper_api.telemetry.spans import Spans
    except ImportError as error:
        raise ExtraMissing(
            f"{error.name} cannot be imported here; `pip install 'whisper-api[otel]'` installs it"
        ) from None
    exporters = [_exporter(name) for name in names]
    for logger in EXPORT_LOGGERS:
        logging.getLogger(logger).addFilter(Repeats(lines=3))
    return Spans(*(BatchSpanProcessor(each) for each in exporters))


def _exporter(name: str) -> Any:
    registered = name
    if name == "otlp":
        protocol = next(filter(None, map(_value, PROTOCOL_VARIABLES)), next(iter(PROTOCOLS)))
        if protocol not in PROTOCOLS:
            raise ConfigError(f"{PROTOCOL_VARIABLES[1]}: expected {' or '.join(PROTOCOLS)}, not {protocol!r}")
        registered = PROTOCOLS[protocol]
    for entry in importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name=registered):
        return entry.load()()
    package = f"opentelemetry-exporter-{registered.replace('_', '-')}"
    remedy = "'whisper-api[otel]'" if registered == EXPORTER_OF_EXTRA else package
    raise ExtraMissing(f"OTEL_TRACES_EXPORTER: {name} is not installed; `pip install {remedy}` installs an exporter")


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip()

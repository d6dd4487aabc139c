"""What an operator sees of a running server: metrics for Prometheus, and traces for OpenTelemetry.

Imports the engine's statistics, values and the log: ``jobs`` and ``server`` report to it.
"""

from whisper_api.telemetry.exporters import exporters_wanted, start_tracing
from whisper_api.telemetry.metrics import Metrics
from whisper_api.telemetry.state import ServiceState
from whisper_api.telemetry.tracing import Tracing

__all__ = ["Metrics", "ServiceState", "Tracing", "exporters_wanted", "start_tracing"]

"""What an operator sees of a running server: metrics for Prometheus.

Imports the engine's statistics and no other part of the package: ``jobs`` and ``server`` report to it.
"""

from whisper_api.telemetry.metrics import Metrics
from whisper_api.telemetry.state import ServiceState

__all__ = ["Metrics", "ServiceState"]

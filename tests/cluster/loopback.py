"""The clusters of the scripts, for tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from loopback_cluster import ROOT, Loopback, cluster, environment

__all__ = ["ROOT", "Loopback", "cluster", "environment"]

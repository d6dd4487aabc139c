"""The clusters of the scripts, and what they compare, for tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from compare_cluster import Outcome, outcome, row
from loopback_cluster import ROOT, SECRET, Loopback, cluster, environment

__all__ = ["ROOT", "SECRET", "Loopback", "Outcome", "cluster", "environment", "outcome", "row"]

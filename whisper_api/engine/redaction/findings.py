"""Places of personal data in a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from whisper_api.options import RedactKind


class Finding(NamedTuple):
    """A place of personal data in a text.

    Attributes:
        start, end: characters of the text.
        kind: what the place holds.
    """

    start: int
    end: int
    kind: RedactKind


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order, without overlaps: overlapping ones become one, with the kind of the longest."""
    result: list[Finding] = []
    for finding in sorted(findings):
        if result and finding.start < result[-1].end:
            last = result[-1]
            longest = max(last, finding, key=lambda each: each.end - each.start)
            result[-1] = Finding(last.start, max(last.end, finding.end), longest.kind)
        else:
            result.append(finding)
    return result

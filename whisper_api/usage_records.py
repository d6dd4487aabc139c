"""What keys have used, as the REST API, the client and the command line give it: counts, and no text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from whisper_api.records import Record


class UsageRow(Record, frozen=True, kw_only=True):
    """What a key has used on one day with one model.

    Attributes:
        day: the day in UTC, as year, month and day with hyphens.
        key_id: id of the key; empty without authorization.
        key_name: name of the key; empty when there is none.
        model: name of the model; ``other`` when the catalogue does not know it, empty for requests.
        requests: requests, except refused ones, health checks, metrics and files of the page.
        jobs: accepted jobs, except those that were given back.
        audio_seconds: length of the audio of these jobs; as stated by the file until the job has ended.
        compute_seconds: work for the jobs that have ended, as the sum of the times of their stages without the loading
            of models; also for jobs that failed or were canceled while they ran.
    """

    day: str
    key_id: str
    key_name: str = ""
    model: str
    requests: int
    jobs: int
    audio_seconds: float
    compute_seconds: float


class QuotaUse(Record, frozen=True, kw_only=True):
    """A quota of a key, and what is left of it.

    Attributes:
        policy: name of the quota: ``audio-day``, ``audio-month``, ``jobs-day`` or ``jobs-month``.
        unit: ``jobs`` or ``audio-seconds``.
        limit: units of each day or month, in UTC.
        remaining: units that are left.
        reset_seconds: seconds until the day or month ends.
    """

    policy: str
    unit: str
    limit: int
    remaining: int
    reset_seconds: int


class Usage(Record, frozen=True, kw_only=True):
    """What has been used from one day to another.

    Attributes:
        since, until: the first and the last day in UTC, as year, month and day with hyphens.
        rows: one for each day, key and model, in this order.
        requests, jobs, audio_seconds, compute_seconds: sums of the rows.
        quotas: the quotas of the caller's key; empty when the usage of all keys was asked for.
    """

    since: str
    until: str
    rows: tuple[UsageRow, ...]
    requests: int
    jobs: int
    audio_seconds: float
    compute_seconds: float
    quotas: tuple[QuotaUse, ...] = ()


def usage_csv(rows: Iterable[UsageRow]) -> str:
    """Rows of usage as CSV (RFC 4180), with the names of the fields in the first line."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = UsageRow.__struct_fields__
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()

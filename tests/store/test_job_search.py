"""Jobs are found by state, metadata and time, page by page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fakes import Services, ended, submit
from hypothesis import strategies as st

from store.test_jobs import new_job
from whisper_api.errors import InvalidOption
from whisper_api.job_values import JobState
from whisper_api.store.job_search import JobFilter
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job

MANY = 500


def found(store: JobStore, **wanted: Any) -> list[str]:
    owner, limit = wanted.pop("owner", "ada"), wanted.pop("limit", 100)
    return [job.job_id for job in store.page(owner, JobFilter(**wanted), limit=limit)]


@hypothesis.given(
    jobs=st.lists(
        st.fixed_dictionaries(
            {
                "owner": st.sampled_from(["ada", "bob"]),
                "created_at": st.integers(0, 5).map(float),
                "metadata": st.none()
                | st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from([1, "1", "x", None, [1]]), max_size=2),
                "failed": st.booleans(),
            }
        ),
        max_size=20,
    ),
    owner=st.sampled_from([None, "ada"]),
    state=st.sampled_from([None, "Failed"]),
    key=st.sampled_from([None, "a"]),
    value=st.sampled_from([None, "1", "x", "null"]),
    after=st.none() | st.integers(0, 5),
    before=st.none() | st.integers(0, 5),
    limit=st.integers(1, 4),
)
@hypothesis.settings(max_examples=40)
def test_a_search_finds_what_reading_all_jobs_would(
    tmp_path_factory: pytest.TempPathFactory,
    jobs: list[dict[str, Any]],
    owner: str | None,
    state: Any,
    key: str | None,
    value: str | None,
    after: int | None,
    before: int | None,
    limit: int,
) -> None:
    store = JobStore(tmp_path_factory.mktemp("search") / "jobs.db")
    for number, fields in enumerate(jobs):
        failed = fields.pop("failed")
        store.add(new_job(f"job-{number}", **fields))
        if failed:
            store.fail(f"job-{number}", "Error", "why", 101.0)

    texts: dict[str, list[Any]] = {"1": [1, "1"], "x": ["x"], "null": [None]}
    conditions: list[Callable[[Job], bool]] = [
        lambda job: owner in (None, job.owner),
        lambda job: state in (None, job.state),
        lambda job: key is None or key in (job.metadata or {}),
        lambda job: key is None or value is None or (job.metadata or {}).get(key, "-") in texts[value],
        lambda job: after is None or job.created_at >= after,
        lambda job: before is None or job.created_at < before,
    ]
    everything = store.page(None, limit=100)
    expected = [job.job_id for job in everything if all(condition(job) for condition in conditions)]
    seen: list[str] = []
    cursor: int | None = None
    while True:
        page = store.page(
            owner,
            JobFilter(
                state=state,
                metadata_key=key,
                metadata_value=None if key is None else value,
                created_after=after,
                created_before=before,
            ),
            limit=limit,
            before_seq=cursor,
        )
        seen += [job.job_id for job in page]
        if len(page) < limit:
            break
        cursor = page[-1].seq
        # Jobs that are added meanwhile are on no later page.
        store.add(new_job(f"new-{cursor}", owner="ada", created_at=2.0, metadata={"a": 1}))
    assert seen == expected
    store.close()


def test_metadata_is_deleted_with_its_job(store: JobStore) -> None:
    store.add(new_job("job", metadata={"case": "X-1", "pages": 3}))
    assert found(store, metadata_key="case", metadata_value="X-1") == ["job"]
    store.delete("job")
    assert found(store, metadata_key="case") == []
    with store.database.read() as reader:
        assert reader.execute("SELECT * FROM job_metadata").fetchall() == []


@pytest.mark.parametrize("state", [None, "Queued"])
def test_a_search_by_metadata_reads_only_what_it_finds(store: JobStore, state: JobState | None) -> None:
    for number in range(MANY):
        store.add(new_job(f"job-{number}", metadata={"from": "page", "number": number}))
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def effort(number: int, **wanted: Any) -> int:
        """How many steps SQLite's machine takes for a page."""
        nonlocal steps
        steps = 0
        with store.database.read() as reader:
            reader.set_progress_handler(count, 1)
        assert len(found(store, state=state, limit=10, **wanted)) == number
        return steps

    few = effort(1, metadata_key="number", metadata_value="7")
    page = effort(10)
    every = effort(10, metadata_key="from", metadata_value="page")
    assert few < page
    # The search reads the row numbers of all matches, but only the jobs of the page.
    assert every < page + 12 * MANY


def test_a_value_needs_its_key_and_pages_keep_to_the_search(serve: Services, tmp_path: Path) -> None:
    service = serve()
    job_ids = [submit(service, owner="ada", metadata={"odd": number % 2}) for number in range(7)]
    for job_id in job_ids:
        ended(service, job_id)
    with pytest.raises(InvalidOption, match="metadata_value: needs metadata_key"):
        service.list_jobs("ada", JobFilter(metadata_value="1"))
    listed: list[str] = []
    after = None
    for _ in range(2):
        page, after = service.list_jobs("ada", JobFilter(metadata_key="odd", metadata_value="1"), limit=2, after=after)
        listed += [each.job_id for each in page]
    assert (listed, after) == (job_ids[1::2][::-1], None)
    assert service.status(job_ids[1], "ada").metadata == {"odd": 1}
    assert service.list_jobs("bob", JobFilter(metadata_key="odd")) == ([], None)
    middle = service.store.get(job_ids[3])
    assert middle is not None
    later, _ = service.list_jobs("ada", JobFilter(created_after=middle.created_at))
    earlier, _ = service.list_jobs("ada", JobFilter(created_before=middle.created_at))
    assert [each.job_id for each in (*later, *earlier)] == job_ids[::-1]
    assert job_ids[3] in [each.job_id for each in later]

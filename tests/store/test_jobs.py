"""The job database: jobs, results and the learned speeds."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from fakes import ids_in, queued_in, transcript_in
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from whisper_api.errors import StorageError
from whisper_api.job_values import JobState
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Segment, Transcript, Word
from whisper_api.store.job_search import JobFilter
from whisper_api.store.jobs import AlreadyThere, JobStore
from whisper_api.store.rows import Job, Rates

WAIT = 60.0
TRANSCRIPT = Transcript(
    language="fr",
    duration=12.5,
    segments=(Segment(id=0, start=0.5, end=2.0, text="Bonjour.", words=(Word(word="Bonjour.", start=0.5, end=2.0),)),),
    model="base",
    options=TranscriptionOptions(model="base", language="fr"),
    timings={"asr": 1.25},
)


def new_job(job_id: str, **changes: Any) -> Job:
    plain = Job(
        job_id=job_id,
        owner="ada",
        options=TranscriptionOptions(),
        output_format="txt",
        audio_bytes=1000,
        created_at=100.0,
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "data" / "jobs.db")
    yield store
    store.close()


def state_of(store: JobStore, job_id: str) -> JobState | None:
    job = store.get(job_id)
    return None if job is None else job.state


def at_once(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all functions in threads that begin together. Returns the result or the exception of each."""
    begin = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def run(index: int, action: Callable[[], Any]) -> None:
        begin.wait(WAIT)
        try:
            results[index] = action()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return results


# --- what goes in comes out ---


def test_a_job_comes_back_as_it_was_given(store: JobStore) -> None:
    job = new_job(
        "job",
        options=TranscriptionOptions(model="base", prompt="naïve 'quotes' \x00 and ∞", diarize=False, num_speakers=2),
        keep_result=True,
        file_name="réunion; DROP TABLE jobs.wav",
        audio_seconds=3.25,
        hf_token="hf_secret",
        warnings=("one", "two"),
        idempotency_key="key",
        fingerprint="print",
    )
    added = store.add(job)
    assert added == msgspec.structs.replace(job, seq=added.seq)
    assert store.get("job") == store.by_idempotency_keys("ada", ["key"]).get("key") == added
    assert store.in_state("Queued") == [added]
    assert store.get("another") is None


def test_jobs_outlive_the_store(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = JobStore(path)
    waiting = [store.add(new_job(f"job-{number}")) for number in range(3)]
    store.claim("job-0", 101.0)
    store.complete("job-0", TRANSCRIPT, 102.0)
    store.close()
    store = JobStore(path)
    assert queued_in(store) == ["job-1", "job-2"]
    assert store.get("job-1") == waiting[1]
    assert transcript_in(store, "job-0") == TRANSCRIPT
    store.close()


def test_the_job_has_the_warnings_of_its_transcript(store: JobStore) -> None:
    store.add(new_job("job", warnings=("an unknown field", "no speakers")))
    store.claim("job", 101.0)
    store.complete("job", replace(TRANSCRIPT, warnings=("no speakers", "cut short")), 102.0)
    job = store.get("job")
    assert job is not None
    assert job.warnings == ("an unknown field", "no speakers", "cut short")


def test_a_transcript_comes_back_as_it_was_given(store: JobStore) -> None:
    store.add(new_job("job", hf_token="hf_secret"))
    store.claim("job", 101.0)
    assert store.complete("job", TRANSCRIPT, 102.5)
    job = store.get("job")
    assert job is not None
    assert (job.state, job.has_result, job.started_at, job.finished_at) == ("Completed", True, 101.0, 102.5)
    assert job.audio_seconds == TRANSCRIPT.duration
    assert transcript_in(store, "job") == TRANSCRIPT


def test_a_failed_job_says_why(store: JobStore) -> None:
    store.add(new_job("job", hf_token="hf_secret"))
    assert store.fail("job", "InvalidAudio", "this is a text", 103.0)
    job = store.get("job")
    assert job is not None
    assert (job.state, job.error_name, job.error, job.finished_at) == ("Failed", "InvalidAudio", "this is a text", 103)


def test_the_repr_of_a_job_hides_private_fields() -> None:
    job = new_job(
        "job", hf_token="hf_secret", file_name="me.wav", options=TranscriptionOptions(prompt="private", hotwords="mine")
    )
    shown = f"{job} {job!r}"
    assert not [word for word in ("hf_secret", "me.wav", "private", "mine") if word in shown]


def test_an_unreadable_row_is_an_error(store: JobStore) -> None:
    store.add(new_job("job"))
    store.claim("job", 101.0)
    store.complete("job", TRANSCRIPT, 102.0)
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET options = '{'")
        connection.execute("UPDATE transcripts SET content = '[]'")
    with pytest.raises(StorageError, match="job"):
        store.get("job")
    with pytest.raises(StorageError, match="job"):
        transcript_in(store, "job")


# --- from one state to another ---

WAYS: dict[JobState, Callable[[JobStore], object]] = {
    "Queued": lambda store: None,
    "Processing": lambda store: store.claim("job", 101.0),
    "Completed": lambda store: store.claim("job", 101.0) and store.complete("job", TRANSCRIPT, 102.0),
    "Failed": lambda store: store.fail("job", "Error", "why", 102.0),
    "Canceled": lambda store: store.cancel("job", 102.0),
}
# Each change: its call, the states that it starts from, and the state that it leads to.
CHANGES: dict[str, tuple[Callable[[JobStore], object], set[JobState], JobState]] = {
    "claim": (lambda store: store.claim("job", 103.0), {"Queued"}, "Processing"),
    "complete": (lambda store: store.complete("job", TRANSCRIPT, 103.0), {"Processing"}, "Completed"),
    "fail": (lambda store: store.fail("job", "Error", "why", 103.0), {"Queued", "Processing"}, "Failed"),
    "cancel": (lambda store: store.cancel("job", 103.0), {"Queued"}, "Canceled"),
    "cancel by force": (
        lambda store: store.cancel("job", 103.0, states=("Processing",)),
        {"Processing"},
        "Canceled",
    ),
    "cancel whatever it is": (
        lambda store: store.cancel("job", 103.0, states=tuple(WAYS)),
        {"Queued", "Processing"},
        "Canceled",
    ),
    "requeue": (lambda store: store.requeue("job", counted=True), {"Processing"}, "Queued"),
    "requeue last": (lambda store: store.requeue("job", last=True), {"Processing"}, "Queued"),
}


@pytest.mark.parametrize("begin", WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_job_changes_only_from_the_states_it_may(store: JobStore, change: str, begin: JobState) -> None:
    store.add(new_job("job", hf_token="hf_secret"))
    WAYS[begin](store)
    before = store.get("job")
    assert before is not None
    assert before.state == begin
    action, allowed, after = CHANGES[change]
    changed = bool(action(store))
    assert changed == (begin in allowed)
    job = store.get("job")
    assert job is not None
    if not changed:
        assert job == before
        return
    ended = after in ("Completed", "Failed", "Canceled")
    assert job.state == after
    assert (job.finished_at == 103.0) == ended
    assert (job.hf_token is None) == ended
    assert job.has_result == (after == "Completed")


@pytest.mark.parametrize("change", CHANGES)
def test_an_unknown_job_does_not_change(store: JobStore, change: str) -> None:
    assert not CHANGES[change][0](store)
    assert ids_in(store) == set()


def test_only_one_of_many_claims_gets_a_job(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.db") for _ in range(2)]
    for number in range(20):
        stores[0].add(new_job(f"job-{number}"))
        claims = [partial(store.claim, f"job-{number}", 101.0) for store in stores * 3]
        won = [job for job in at_once(claims) if job is not None]
        assert [job.job_id for job in won] == [f"job-{number}"]
        assert won[0].state == "Processing"
    for store in stores:
        store.close()


def test_the_attempts_at_a_job_add_up(store: JobStore) -> None:
    store.add(new_job("job"))
    for counted in (True, False, True):
        store.claim("job", 101.0)
        assert store.requeue("job", counted=counted)
    job = store.get("job")
    assert job is not None
    assert (job.attempts, job.started_at) == (2, None)


class StoreMachine(RuleBasedStateMachine):
    """Compares the store with plain lists: states, the order of the queue, results, owners."""

    ids = st.integers(0, 5).map(lambda number: f"job-{number}")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = JobStore(Path(self.directory.name) / "jobs.db")
        self.states: dict[str, JobState] = {}
        self.owners: dict[str, str] = {}
        self.results: set[str] = set()
        self.order: list[str] = []  # as the queue, with the jobs that run in the places they may come back to
        self.submitted: list[str] = []

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def change(self, job_id: str, changed: object, before: set[JobState], after: JobState) -> None:
        assert bool(changed) == (self.states.get(job_id) in before)
        if changed:
            self.states[job_id] = after

    @rule(job_id=ids, owner=st.sampled_from(["", "ada", "bob"]))
    def add(self, job_id: str, owner: str) -> None:
        if job_id in self.states:
            with pytest.raises(StorageError):
                self.store.add(new_job(job_id, owner=owner))
            return
        self.store.add(new_job(job_id, owner=owner))
        self.states[job_id] = "Queued"
        self.owners[job_id] = owner
        self.order.append(job_id)
        self.submitted.append(job_id)

    @rule(job_id=ids)
    def claim(self, job_id: str) -> None:
        self.change(job_id, self.store.claim(job_id, 101.0), {"Queued"}, "Processing")

    @rule(job_id=ids)
    def complete(self, job_id: str) -> None:
        completed = self.store.complete(job_id, TRANSCRIPT, 102.0)
        self.change(job_id, completed, {"Processing"}, "Completed")
        if completed:
            self.results.add(job_id)

    @rule(job_id=ids)
    def fail(self, job_id: str) -> None:
        self.change(job_id, self.store.fail(job_id, "Error", "why", 102.0), {"Queued", "Processing"}, "Failed")

    @rule(job_id=ids, states=st.sets(st.sampled_from(["Queued", "Processing"]), min_size=1))
    def cancel(self, job_id: str, states: set[JobState]) -> None:
        self.change(job_id, self.store.cancel(job_id, 102.0, states=tuple(states)), states, "Canceled")

    @rule(job_id=ids, last=st.booleans())
    def requeue(self, job_id: str, last: bool) -> None:
        requeued = self.store.requeue(job_id, last=last)
        self.change(job_id, requeued, {"Processing"}, "Queued")
        if requeued and last:
            self.order.remove(job_id)
            self.order.append(job_id)

    @rule(job_id=ids)
    def drop_result(self, job_id: str) -> None:
        assert self.store.drop_result(job_id) == (job_id in self.results)
        self.results.discard(job_id)

    @rule(job_id=ids)
    def delete(self, job_id: str) -> None:
        self.store.delete(job_id)
        self.states.pop(job_id, None)
        self.results.discard(job_id)
        self.order = [other for other in self.order if other != job_id]
        self.submitted = [other for other in self.submitted if other != job_id]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = JobStore(Path(self.directory.name) / "jobs.db")

    @invariant()
    def agrees(self) -> None:
        waiting = [job_id for job_id in self.order if self.states[job_id] == "Queued"]
        assert queued_in(self.store) == waiting
        assert [job.job_id for job in self.store.in_state("Queued", "Processing")] == [
            job_id for job_id in self.order if self.states[job_id] in ("Queued", "Processing")
        ]
        listed = self.store.page(None, limit=100)
        assert [job.job_id for job in reversed(listed)] == self.submitted
        assert {job.job_id: job.state for job in listed} == self.states
        assert {job.job_id for job in listed if job.has_result} == self.results
        for job_id in self.states:
            assert (transcript_in(self.store, job_id) is not None) == (job_id in self.results)
        for owner in ("", "ada", "bob"):
            theirs = [state for job_id, state in self.states.items() if self.owners[job_id] == owner]
            assert self.store.unfinished(owner) == theirs.count("Queued") + theirs.count("Processing")


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis.settings(max_examples=20, stateful_step_count=30)


# --- idempotency ---


def test_an_idempotency_key_is_one_owners_and_for_one_job(store: JobStore) -> None:
    first = store.add(new_job("first", idempotency_key="key"))
    with pytest.raises(AlreadyThere) as caught:
        store.add(new_job("second", idempotency_key="key"))
    assert caught.value.job == first
    store.add(new_job("third", idempotency_key="key", owner="bob"))
    store.add(new_job("fourth"))
    store.add(new_job("fifth"))
    assert ids_in(store) == {"first", "third", "fourth", "fifth"}
    assert store.by_idempotency_keys("eve", ["key"]).get("key") is None
    store.delete("first")
    store.add(new_job("second", idempotency_key="key"))


def test_only_one_of_many_jobs_with_one_idempotency_key_is_added(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.db") for _ in range(2)]
    for attempt in range(20):
        adds = [
            partial(store.add, new_job(f"{attempt}-{number}", idempotency_key=f"key-{attempt}"))
            for number, store in enumerate(stores * 3)
        ]
        results = at_once(adds)
        [added] = [result for result in results if isinstance(result, Job)]
        refused = [result for result in results if isinstance(result, AlreadyThere)]
        assert [error.job for error in refused] == [added] * 5
    assert len(ids_in(stores[0])) == 20
    for store in stores:
        store.close()


# --- lists ---


@hypothesis.given(
    owners=st.lists(st.sampled_from(["ada", "bob"]), max_size=12),
    limit=st.integers(1, 5),
    between=st.lists(st.sampled_from(["insert", "delete"]), max_size=6),
)
@hypothesis.settings(max_examples=30)
def test_pages_show_each_job_once_while_others_come_and_go(
    tmp_path_factory: pytest.TempPathFactory, owners: list[str], limit: int, between: list[str]
) -> None:
    store = JobStore(tmp_path_factory.mktemp("pages") / "jobs.db")
    for number, owner in enumerate(owners):
        store.add(new_job(f"job-{number}", owner=owner))
    expected = [f"job-{number}" for number, owner in enumerate(owners) if owner == "ada"][::-1]
    seen: list[str] = []
    changes = iter(between)
    before: int | None = None
    while page := store.page("ada", limit=limit, before_seq=before):
        assert len(page) <= limit
        seen += [job.job_id for job in page]
        before = page[-1].seq
        match next(changes, None):
            case "insert":
                store.add(new_job(f"new-{before}"))
            case "delete":
                # The row of the cursor is deleted; the cursor must keep its position.
                store.delete(page[-1].job_id)
    assert seen == expected
    store.close()


def test_a_page_can_be_of_one_state(store: JobStore) -> None:
    for number in range(6):
        store.add(new_job(f"job-{number}", owner="ada" if number % 2 else "bob"))
    for number in (1, 2, 5):
        store.fail(f"job-{number}", "Error", "why", 101.0)
    listed = store.page("ada", JobFilter(state="Failed"), limit=10)
    assert [job.job_id for job in listed] == ["job-5", "job-1"]


def test_a_number_is_never_used_again(store: JobStore) -> None:
    # A cursor that a client holds must not come to mean a job that was submitted later.
    last = store.add(new_job("job"))
    store.delete("job")
    assert store.add(new_job("next")).seq > last.seq


# --- results and their end ---


def finished(store: JobStore, job_id: str, at: float, **changes: Any) -> None:
    store.add(new_job(job_id, **changes))
    store.claim(job_id, at)
    store.complete(job_id, TRANSCRIPT, at)


def test_only_the_first_delivery_counts(store: JobStore) -> None:
    finished(store, "job", 200.0)
    store.mark_delivered("job", 210.0)
    store.mark_delivered("job", 300.0)
    job = store.get("job")
    assert job is not None
    assert job.delivered_at == 210.0


def test_results_expire_when_they_were_delivered_and_need_not_be_kept(store: JobStore) -> None:
    finished(store, "early", 200.0)
    finished(store, "late", 200.0)
    finished(store, "kept", 200.0, keep_result=True)
    finished(store, "unread", 200.0)
    for job_id, at in (("early", 210.0), ("late", 220.0), ("kept", 210.0)):
        store.mark_delivered(job_id, at)
    assert store.expired_results(220.0) == ["early"]
    assert store.drop_result("early")
    assert not store.drop_result("early")
    assert store.expired_results(220.0) == []
    assert transcript_in(store, "early") is None
    job = store.get("early")
    assert job is not None
    assert (job.state, job.has_result) == ("Completed", False)


def test_jobs_expire_when_they_ended_long_ago(store: JobStore) -> None:
    finished(store, "old", 200.0)
    finished(store, "new", 300.0)
    store.add(new_job("waiting", created_at=1.0))
    store.add(new_job("canceled"))
    store.cancel("canceled", 250.0)
    assert store.expired_jobs(300.0) == ["old", "canceled"]
    store.delete("old")
    assert store.get("old") is None
    assert transcript_in(store, "old") is None


# --- what was learned -------------


def learn(store: JobStore, rates: dict[str, float]) -> None:
    job_id = str(uuid.uuid4())
    store.add(new_job(job_id))
    store.claim(job_id, 101.0)
    assert store.complete(job_id, TRANSCRIPT, 102.0, Rates("base", "cpu", rates))


def test_a_result_that_is_not_kept_teaches_no_rates(store: JobStore) -> None:
    store.add(new_job("job"))
    assert not store.complete("job", TRANSCRIPT, 102.0, Rates("base", "cpu", {"asr": 0.5}))
    assert store.stage_rates() == {}


def test_speeds_follow_what_was_seen_last(store: JobStore) -> None:
    learn(store, {"asr": 0.5, "align": 0.1})
    assert store.stage_rates() == {("base", "cpu", "asr"): 0.5, ("base", "cpu", "align"): 0.1}
    learn(store, {"asr": 1.5})
    assert store.stage_rates()[("base", "cpu", "asr")] == pytest.approx(1.0)
    seen = [1.0]
    for _ in range(30):
        learn(store, {"asr": 4.0})
        seen.append(store.stage_rates()[("base", "cpu", "asr")])
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(4.0, rel=0.01)
    assert store.stage_rates()[("base", "cpu", "align")] == 0.1

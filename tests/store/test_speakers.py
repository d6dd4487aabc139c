"""Known speakers on the disk: whose they are, and that a deletion leaves nothing of them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from fakes import Services

from store.test_deletion import Plants, _wipe_often, on_disk
from whisper_api.access.keys import KeyRing
from whisper_api.errors import SpeakerExists, SpeakerLimit, SpeakerNotFound
from whisper_api.store.jobs import JobStore
from whisper_api.store.speakers import KnownVoice
from whisper_api.voices import VoiceEmbedding, VoiceSample

__all__ = ["_wipe_often"]


def known(name: str, owner: str = "", vector: float = 1.0) -> KnownVoice:
    voice = VoiceEmbedding(model="campplus", samples=(VoiceSample(seconds=3.0, vector=(vector, 0.0)),))
    return KnownVoice(speaker_id=str(uuid.uuid4()), owner=owner, name=name, voice=voice, created_at=1.0, updated_at=1.0)


def test_names_are_unique_for_each_owner_and_their_number_is_bounded(store: JobStore) -> None:
    mine, theirs = known("Ada", "a"), known("Ada", "b")
    store.add_speaker(mine, 2)
    store.add_speaker(theirs, 2)
    with pytest.raises(SpeakerExists):
        store.add_speaker(known("Ada", "a"), 2)
    store.add_speaker(known("Bo", "a"), 2)
    with pytest.raises(SpeakerLimit):
        store.add_speaker(known("Cy", "a"), 2)
    store.add_speaker(known("Cy", "a"), 0)
    assert [each.name for each in store.speakers("a")] == ["Ada", "Bo", "Cy"]
    assert store.speakers("b") == [theirs]
    assert len(store.speakers(None)) == 4
    with pytest.raises(SpeakerExists):
        store.change_speaker(mine.speaker_id, lambda each: known("Bo", "a"))
    assert store.speaker(mine.speaker_id) == mine
    assert "Ada" not in repr(mine)


def test_a_deleted_or_changed_speaker_is_gone_from_the_disk(serve: Services, tmp_path: Path) -> None:
    service = serve()
    store = service.store
    key, _ = KeyRing(store).create("leaving")
    # Many rows, so that SQLite splits and joins pages.
    words = [f"plant{uuid.uuid4().hex}" for _ in range(40)]
    numbers = [f"0.{100_000 + number}9876" for number in range(40)]
    speakers = [
        known(name, key.key_id if place % 2 else "", float(number))
        for place, (name, number) in enumerate(zip(words, numbers, strict=True))
    ]
    for speaker in speakers:
        store.add_speaker(speaker, 0)
    assert on_disk(tmp_path, [*words, *numbers]) == {*words, *numbers}
    renamed = f"plant{uuid.uuid4().hex}"
    service.speakers.rename(speakers[0].speaker_id, None, renamed)
    for speaker in speakers[2::2]:
        service.speakers.delete(speaker.speaker_id, None)
    # The key's speakers go with the key.
    KeyRing(store).revoke(key.key_id)
    assert [each.name for each in store.speakers(None)] == [renamed]
    with pytest.raises(SpeakerNotFound):
        store.add_speaker(known("Ada", key.key_id), 0)
    plants = Plants(service)
    plants.words = [*words, *numbers[1:]]
    plants.gone(tmp_path)
    assert on_disk(tmp_path, [renamed, numbers[0]]) == {renamed, numbers[0]}

"""Whether a decoded text repeats the decoder's prompt instead of the audio.

In noise, laughter and unclear speech, Whisper writes the words of its prompt: they are so probable after the prompt
that the mean log probability does not show the error, and a high ``no_speech`` counts only beside a low probability. A
text that copies much of the prompt is therefore compared with what the window gives without a prompt: words that are
said sound alike there, even when the names are misspelled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from whisper_api.engine.whisper.resemblance import Sounds, likeness, plain_words

__all__ = ["copied_runs", "is_heard", "may_be_leaked"]

# So many words in the order of the prompt are suspicious in any text, and so is a text with this share of copied words.
LONG_RUN = 4
COPIED_SHARE = 0.5
# Above this probability of no speech, any copied word is suspicious.
NO_SPEECH_PROB = 0.6
# A copied run is heard if it sounds so much like a place of the text without the prompt, which chance does not reach.
HEARD_LIKENESS = 0.6
# The same for a single word. Chance finds a place for a single word more easily.
HEARD_WORD_LIKENESS = 0.65
# Single words of the prompt occur in any text; only longer ones count as copied.
LETTERS_OF_A_WORD = 5

Run = tuple[str, ...]


def copied_runs(text: str, prompt: Sequence[str]) -> list[Run]:
    """The words of a text that occur in the same order in the prompt, as runs without overlap.

    Args:
        text: the decoded text.
        prompt: the words of the prompt, as :func:`plain_words` gives them.
    """
    words, runs, index = plain_words(text), [], 0
    places: dict[str, list[int]] = {}
    for place, word in enumerate(prompt):
        places.setdefault(word, []).append(place)
    while index < len(words):
        length = max((_common(words, index, prompt, place) for place in places.get(words[index], ())), default=0)
        if length > 1 or (length == 1 and len(words[index]) >= LETTERS_OF_A_WORD):
            runs.append(tuple(words[index : index + length]))
        index += max(1, length)
    return runs


def may_be_leaked(text: str, runs: Sequence[Run], no_speech_prob: float) -> bool:
    """Whether so much of a text is copied that it must be compared with a decoding without the prompt.

    Args:
        text: the decoded text.
        runs: its copied runs.
        no_speech_prob: probability that the window holds no speech.
    """
    if not runs:
        return False
    copied = sum(map(len, runs))
    return (
        no_speech_prob > NO_SPEECH_PROB
        or max(map(len, runs)) >= LONG_RUN
        or copied >= COPIED_SHARE * len(plain_words(text))
    )


def is_heard(runs: Sequence[Run], plain: str) -> bool:
    """Whether most of the copied words sound like the text that the window has without a prompt.

    Args:
        runs: the copied runs.
        plain: the text without a prompt.
    """
    heard = sum(len(run) for run in runs if likeness(" ".join(run), plain) >= HEARD_LIKENESS or _by_word(run, plain))
    return 2 * heard >= sum(map(len, runs))


def _by_word(run: Run, plain: str) -> bool:
    """Whether at least half of the longer words are heard each for itself: abbreviations differ from what is heard."""
    long = [word for word in run if len(word) >= LETTERS_OF_A_WORD]
    return bool(long) and 2 * int((Sounds(long).likeness(plain) >= HEARD_WORD_LIKENESS).sum()) >= len(long)


def _common(words: Sequence[str], index: int, prompt: Sequence[str], place: int) -> int:
    """The number of equal words from two places on."""
    pairs = zip(words[index:], prompt[place:], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

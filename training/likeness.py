"""How near the voices of a clip are to the references that were given for them, and to other voices'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nava_core.mel import SAMPLING_RATE
from training import speaking
from training.people import Person
from training.shots import Shot, speakers
from training.timbre import Encoder, rivals
from training.voices import VoiceBank

# Root mean square of a span in which nobody speaks: 23 dB and more under speech, well over the noise floor.
SILENT = 10 ** (-50 / 20)

# Cosines of one speaker's span to its "own" reference, to "any" other voice's, to a "like" one's and to that of the
# "partner", the clip's other speaker. What there is not has no entry. In silence all are 0: it is nobody's voice.
Likeness = Mapping[str, float]


def clip_likeness(
    shot: Shot, bank: VoiceBank, audio: np.ndarray, rate: int, encoders: Mapping[str, Encoder]
) -> dict[str, list[Likeness]]:
    """For each encoder, the likeness of each speaker of `audio` (channels, samples), in the order of their speech."""
    found: dict[str, list[Likeness]] = {name: [] for name in encoders}
    for number in speakers(shot):
        spoken = span(shot.people[number], bank, audio, rate)
        sounds = references(shot, number, bank)
        silent = np.sqrt(np.square(spoken).sum() / max(spoken.size, 1)) < SILENT
        for name, encoder in encoders.items():
            rows = {kind: encoder(sound, SAMPLING_RATE) for kind, sound in sounds.items()}
            heard = np.zeros_like(rows["own"]) if silent else encoder(spoken, rate)
            found[name].append({kind: float(heard @ row) for kind, row in rows.items()})
    return found


def span(person: Person, bank: VoiceBank, audio: np.ndarray, rate: int) -> np.ndarray:
    """The part of `audio` (channels, samples) in which `person` was asked to speak."""
    first = round(person.start * rate)
    return audio[:, first : first + round(speaking.utterance(person, bank).seconds * rate)]


def references(shot: Shot, number: int, bank: VoiceBank) -> dict[str, np.ndarray]:
    """What the speech of a person is held against, float32 (samples,) at 16 kHz each, without the words of that speech.

    The same at each call: "own" is the reference that the model is given.
    """
    person = shot.people[number]
    rng = np.random.default_rng([person.speech_seed, 2])
    partners = {shot.people[other].voice for other in speakers(shot)} - {person.voice}
    pools = rivals(bank, bank.voice(person.voice)) | {"partner": [bank.voice(name) for name in sorted(partners)]}
    drawn = {
        kind: bank.reference(pool[rng.integers(len(pool))], rng, person.words) for kind, pool in pools.items() if pool
    }
    return {"own": speaking.reference(person, bank), **drawn}


def likeness_columns(encoders: Sequence[str]) -> list[str]:
    """The names of the numbers that `likeness_shares` makes."""
    return [column for name in encoders for column in (f"voice {name}", f"voice {name} like", f"binding {name}")]


def likeness_shares(clips: Sequence[Mapping[str, Sequence[Likeness]]]) -> dict[str, float]:
    """Shares (0 to 1) of spans that are nearer to their own reference than to another's, NaN where there are none.

    binding: of the clips with two voices, those with both spans nearer to their own reference than to the other's.
    """
    result = {}
    for name in {name: None for clip in clips for name in clip}:
        spans = [span for clip in clips for span in clip[name]]
        pairs = [clip[name] for clip in clips if any("partner" in span for span in clip[name])]
        result[f"voice {name}"] = _mean([span["own"] > span["any"] for span in spans if "any" in span])
        result[f"voice {name} like"] = _mean([span["own"] > span["like"] for span in spans if "like" in span])
        result[f"binding {name}"] = _mean([all(span["own"] > span["partner"] for span in pair) for pair in pairs])
    return result


def likeness_margins(clips: Sequence[Mapping[str, Sequence[Likeness]]]) -> dict[str, float]:
    """For each encoder how much nearer the spans are to their own reference than to another's: mean of the cosines."""
    return {
        f"likeness {name}": _mean([span["own"] - span["any"] for clip in clips for span in clip[name] if "any" in span])
        for name in {name: None for clip in clips for name in clip}
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")

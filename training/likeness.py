"""How near the voices of a clip are to the references that were given for them, and to other voices'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from nava_core.mel import SAMPLING_RATE
from training import speaking
from training.people import Person
from training.scores import mean_known
from training.shots import Shot, speakers
from training.timbre import Encoder, rivals
from training.voices import VoiceBank

# Root mean square of a span in which nobody speaks: 23 dB and more under speech, well over the noise floor.
SILENT = 10 ** (-50 / 20)

# Cosines of one speaker's span to its "own" reference, to another voice's of its "sex", to a "like" one's, and to that
# of the clip's other speaker, a "partner" of the other sex or a "peer" of the same. What there is not has no entry. In
# silence all are 0: it is nobody's voice.
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


def turns(shot: Shot, bank: VoiceBank, audio: np.ndarray, rate: int) -> list[np.ndarray]:
    """`audio` (channels, samples) in a piece for each speaker, cut midway between one's end and the next's start."""
    people = [shot.people[number] for number in speakers(shot)]
    cuts = [round((speaking.speech_end(one, bank) + then.start) / 2 * rate) for one, then in pairwise(people)]
    return np.split(audio, cuts, axis=1)


def references(shot: Shot, number: int, bank: VoiceBank) -> dict[str, np.ndarray]:
    """What the speech of a person is held against, float32 (samples,) at 16 kHz each, without the words of that speech.

    The same at each call: "own" is the reference that the model is given.
    """
    person = shot.people[number]
    rng = np.random.default_rng([person.speech_seed, 2])
    voice = bank.voice(person.voice)
    pools = rivals(bank, voice)
    for other in (bank.voice(shot.people[other].voice) for other in speakers(shot)):
        if other != voice:
            pools["peer" if other.sex == voice.sex else "partner"] = [other]
    drawn = {
        kind: bank.reference(pool[rng.integers(len(pool))], rng, person.words) for kind, pool in pools.items() if pool
    }
    return {"own": speaking.reference(person, bank), **drawn}


def likeness_columns(encoders: Sequence[str]) -> list[str]:
    """The names of the numbers that `likeness_shares` makes."""
    kinds = ("voice {}", "voice {} like", "binding {}", "binding {} one sex")
    return [kind.format(name) for name in encoders for kind in kinds]


def likeness_shares(clips: Sequence[Mapping[str, Sequence[Likeness]]]) -> dict[str, float]:
    """Shares (0 to 1) of spans that are nearer to their own reference than to another's, NaN where there are none.

    voice: another's of the same sex; like: of like pitch too. binding: of the clips with two voices, those with both
    spans nearer to their own reference than to the other's; one sex: of those whose voices are of one sex, since two
    sexes are told apart by the prompt alone.
    """
    result = {}
    for name in {name: None for clip in clips for name in clip}:
        spans = [span for clip in clips for span in clip[name]]
        result[f"voice {name}"] = mean_known(_nearer(spans, "sex"))
        result[f"voice {name} like"] = mean_known(_nearer(spans, "like"))
        peers, partners = (
            [all(pair) for clip in clips if (pair := _nearer(clip[name], kind))] for kind in ("peer", "partner")
        )
        result[f"binding {name}"] = mean_known(peers + partners)
        result[f"binding {name} one sex"] = mean_known(peers)
    return result


def _nearer(spans: Sequence[Likeness], kind: str) -> list[bool]:
    """Whether each of the spans that are held against a `kind` of voice is nearer to its own."""
    return [span["own"] > span[kind] for span in spans if kind in span]


def likeness_margins(clips: Sequence[Mapping[str, Sequence[Likeness]]]) -> dict[str, float]:
    """For each encoder how much nearer spans are to their own reference than to one of the same sex, mean cosines."""
    return {
        f"likeness {name}": mean_known(
            [span["own"] - span["sex"] for clip in clips for span in clip[name] if "sex" in span]
        )
        for name in {name: None for clip in clips for name in clip}
    }

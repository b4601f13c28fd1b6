from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from training import captions, world
from training.world_sound import NOISE_FLOOR


def scenes(count: int, pairs: str = "all", seed: int = 0) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng, pairs) for _ in range(count)]


def test_held_out_pairs_leave_every_colour_and_shape_in_training() -> None:
    train, held_out = set(world.PAIRS["train"]), set(world.PAIRS["held_out"])
    assert len(held_out) == 5 and not train & held_out and train | held_out == set(world.PAIRS["all"])
    assert {colour for colour, _ in train} == set(world.COLOURS)
    assert {shape for _, shape in train} == set(world.SHAPES)
    assert {(scene.colour, scene.shape) for scene in scenes(300, "train")} <= train
    assert {(scene.colour, scene.shape) for scene in scenes(100, "held_out")} == held_out
    with pytest.raises(ValueError, match="train, held_out"):
        world.sample_scene(np.random.default_rng(0), "test")


def test_first_contacts_spread_over_the_clip_and_bounces_are_few() -> None:
    hits = [world.contacts(scene) for scene in scenes(600)]
    first = np.array([hit[0].time for hit in hits])
    assert first.min() >= world.FIRST_CONTACT[0] and first.max() <= world.FIRST_CONTACT[1]
    counts = np.histogram(first, 5, world.FIRST_CONTACT)[0]
    assert counts.min() > 0.6 * 600 / 5
    assert {len(hit) for hit in hits} == {1, 2, 3}
    assert all(hit[-1].time < world.CLIP_SECONDS - world.END_MARGIN for hit in hits)


def test_the_lower_edge_touches_the_floor_at_each_contact_and_only_then() -> None:
    for scene in scenes(60):
        hits = world.contacts(scene, 10.0)
        assert np.allclose(world.heights(scene, np.array([hit.time for hit in hits])), 0, atol=1e-9)
        for earlier, later in pairwise(hits):
            between = world.heights(scene, np.array([(earlier.time + later.time) / 2]))
            assert between[0] >= world.LEAST_REBOUND - 1e-9
        assert world.heights(scene, np.array([hits[-1].time + 0.5]))[0] == 0
        assert world.heights(scene, np.array([0.0, scene.release_time])) == pytest.approx(scene.fall)


@pytest.mark.parametrize("size", [(128, 128), (192, 96)])
def test_frames_show_the_shape_standing_on_the_floor(size: tuple[int, int]) -> None:
    width, height = size
    for scene in scenes(8):
        frames = world.render_frames(scene, width, height)
        assert frames.shape == (49, height, width, 3) and frames.dtype == np.uint8
        difference = np.abs(frames[-1].astype(int) - np.median(frames[-1], axis=1, keepdims=True)).sum(-1)
        rows = np.flatnonzero(difference[: int(world.FLOOR * height) + 1].max(axis=1) > 60)
        assert rows.max() == pytest.approx(world.FLOOR * height - 1, abs=1.5)
        columns = np.flatnonzero(difference[: int(world.FLOOR * height)].max(axis=0) > 60)
        assert columns.mean() == pytest.approx(scene.x * width, abs=1.5)


def test_every_colour_stands_out_from_every_background() -> None:
    from training.measure import _to_lab

    colours = _to_lab(np.array(list(world.COLOURS.values()), dtype=float))
    backgrounds = _to_lab(np.array(list(world.BACKGROUNDS.values()), dtype=float))
    assert np.linalg.norm(colours[:, None] - backgrounds[None], axis=-1).min() > 30
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert apart.min() > 30
    shades = _to_lab(np.array(list(world.SHADES.values()), dtype=float))
    assert np.linalg.norm(colours[:, None] - shades[None], axis=-1).min() > 18


def test_sound_is_silent_until_the_contact_and_sharp_at_it() -> None:
    for scene in scenes(24):
        sound = world.render_sound(scene)
        assert sound.shape == (2, round(world.CLIP_SECONDS * 48_000)) and sound.dtype == np.float32
        assert np.abs(sound).max() < 0.9
        start = int(world.contacts(scene)[0].time * 48_000)
        assert np.abs(sound[:, :start]).max() < 8 * NOISE_FLOOR
        loudest = np.abs(sound[:, start : start + 480]).max()
        assert np.abs(sound[:, start : start + 240]).max() > 0.25 * loudest > 0.02


def test_sound_leans_to_the_side_of_the_shape_and_faster_is_louder() -> None:
    scene = scenes(1)[0]
    left, right = (world.render_sound(replace(scene, x=x)) for x in (0.25, 0.75))
    energy = [np.sum(sound.astype(float) ** 2, axis=1) for sound in (left, right)]
    assert energy[0][0] > 4 * energy[0][1] and energy[1][1] > 4 * energy[1][0]
    assert energy[0].sum() == pytest.approx(energy[1].sum(), rel=0.02)
    low = world.render_sound(replace(scene, fall=0.2, release_time=0.2))
    high = world.render_sound(replace(scene, fall=0.5, release_time=0.2))
    assert np.abs(high).max() > 1.15 * np.abs(low).max()


@pytest.mark.parametrize("shape", world.SHAPES)
def test_sound_stays_within_the_models_band(shape: str) -> None:
    scene = replace(scenes(1)[0], shape=shape, radius=0.085)
    power = np.abs(np.fft.rfft(world.render_sound(scene)[0])) ** 2
    cutoff = int(8000 * world.CLIP_SECONDS)
    assert power[cutoff:].sum() < 0.01 * power.sum()


def test_captions_name_what_the_scene_holds() -> None:
    rng = np.random.default_rng(1)
    for scene in scenes(200):
        dense = captions.caption(scene, rng, "dense")
        assert 60 <= len(dense) <= 140 and "\n" not in dense
        known = captions.known_words(dense)
        for fact in ("shape", "colour"):
            assert any(name in dense for name in captions.WORDS[fact][getattr(scene, fact)]["zh"])
        assert known["shape"] == scene.shape
        for style in ("short", "english"):
            known = captions.known_words(captions.caption(scene, rng, style))
            assert (known["shape"], known["colour"]) == (scene.shape, scene.colour)
    with pytest.raises(ValueError, match="dense"):
        captions.caption(scenes(1)[0], rng, "poem")


def test_captions_say_when_the_shape_lands_where_they_are_asked_to() -> None:
    rng = np.random.default_rng(2)
    for scene in scenes(100):
        moment = f"{world.contacts(scene)[0].time:.1f}"
        for style, unit in (("dense", "秒"), ("english", " s")):
            assert moment + unit in captions.caption(scene, rng, style, moment=True)
            plain = captions.caption(scene, rng, style, moment=False).replace("2D", "")
            assert not any(digit in plain for digit in "0123456789")


def test_known_words_says_when_a_prompt_is_outside_of_the_world() -> None:
    assert captions.known_words("a small red ball, on the left") == {
        "shape": "ball", "colour": "red", "size": "small", "column": "left",
    }  # fmt: skip
    assert captions.known_words("一颗蓝色的星星")["shape"] == "star"
    assert captions.known_words("a cat is bored in a credit union") == {}
    assert "圆球" in captions.VOCABULARY_HINT["zh"]["shape"] and "ball" in captions.VOCABULARY_HINT["en"]["shape"]

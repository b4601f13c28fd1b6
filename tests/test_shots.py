"""The world's pictures beyond falling shapes, what captions say of them, and the measures that read them back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage

from nava_core.speech import parse_speech
from training import backdrops, canvas, captions, captions_people, people, picture_labels, rolling, shots, world
from training.measure_camera import measure_camera
from training.measure_people import correlation, measure_people


def draw(kind: str, seed: int, **changes: object) -> tuple[shots.Shot, np.ndarray, list[np.ndarray]]:
    """A shot, its frames and its people's openings."""
    rng = np.random.default_rng(seed)
    shot = replace(shots.sample_shot(rng, kind, "all"), **changes)
    openings = [shots.babble(rng, shot.num_frames) for _ in shot.people]
    return shot, shots.render_frames(shot, openings), openings


def worn(frames: np.ndarray) -> np.ndarray:
    """The softness and the noise of an autoencoder's decoder."""
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (0.3, 0.9, 0.9, 0))
    return np.clip(soft + np.random.default_rng(0).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)


def test_every_kind_has_its_size_and_survives_json() -> None:
    for kind in shots.KINDS:
        for seed in range(3):
            shot, frames, _ = draw(kind, seed)
            assert frames.shape == (49, shot.height, shot.width, 3) and frames.dtype == np.uint8
            assert shots.shot_from_dict(json.loads(json.dumps(asdict(shot)))) == shot
    with pytest.raises(ValueError, match="fall, roll"):
        shots.sample_shot(np.random.default_rng(0), "opera")
    with pytest.raises(ValueError, match="square"):
        shots.sample_shot(np.random.default_rng(0), "talk", size="portrait")
    with pytest.raises(ValueError, match="seconds is 3 for a shot of the kind talk; 2"):
        shots.sample_shot(np.random.default_rng(0), "talk", seconds=3)


def test_a_longer_shot_is_the_same_shot_for_longer() -> None:
    drawn = [shots.sample_shot(np.random.default_rng(2), "tour", size="landscape", seconds=s) for s in (2.0, 3.0, 4.0)]
    assert drawn == [replace(drawn[0], seconds=s) for s in (2.0, 3.0, 4.0)]
    frames = shots.render_frames(drawn[2], [np.zeros(97, np.float32)] * len(drawn[2].people))
    assert frames.shape == (97, 128, 224, 3)


def test_held_out_looks_leave_every_hair_and_every_colour_in_training() -> None:
    train, held_out = set(people.LOOKS["train"]), set(people.LOOKS["held_out"])
    assert not train & held_out and {hair for hair, _ in train} == set(people.HAIR)
    rng = np.random.default_rng(0)
    drawn = [person for _ in range(60) for person in shots.sample_shot(rng, "pair", "train").people]
    assert {(person.hair, person.clothes) for person in drawn} <= train


@pytest.mark.parametrize("kind", ["talk", "pair"])
def test_looks_places_and_mouths_are_read_from_worn_pictures(kind: str) -> None:
    for seed in range(6):
        shot, frames, openings = draw(kind, seed)
        found = measure_people(worn(frames))
        assert len(found) == len(shot.people)
        for seen, person, opening in zip(found, shot.people, openings, strict=True):
            assert (seen.hair, seen.clothes, seen.skin) == (person.hair, person.clothes, person.skin)
            assert seen.x / shot.width == pytest.approx(person.x, abs=0.03)
            assert correlation(seen.opening, opening) > 0.95


def test_what_is_not_to_be_seen_has_no_colour() -> None:
    shot, frames, _ = draw("talk", 2)
    (person,) = shot.people
    wall = backdrops.WALLS[shot.backdrop]
    for fact, colours in (("hair", people.HAIR), ("clothes", world.COLOURS)):
        near = np.abs(frames.astype(int) - colours[getattr(person, fact)]).max(axis=-1) < 45
        bare = np.where(near[..., None], np.array(wall, np.uint8), frames)
        # A stray patch of it says nothing either.
        corner = (slice(None), slice(-3, None) if fact == "clothes" else slice(30, 33), slice(60, 64))
        bare[corner] = colours[getattr(person, fact)]
        (seen,) = measure_people(worn(bare))
        looks = {"skin": person.skin, "hair": person.hair, "clothes": person.clothes, fact: ""}
        assert {name: getattr(seen, name) for name in looks} == looks
    low = frames[:, : int((person.y + person.radius) * shot.height) + 2]
    (seen,) = measure_people(low)
    assert seen.clothes == ""


def test_a_shut_mouth_and_an_empty_room_are_seen_as_such() -> None:
    shot = shots.sample_shot(np.random.default_rng(0), "talk")
    frames = shots.render_frames(shot, [np.zeros(shot.num_frames)])
    (person,) = measure_people(worn(frames))
    assert np.ptp(person.opening) < 0.08
    assert measure_people(worn(draw("fall", 1)[1])) == []
    with pytest.raises(ValueError, match="one for each person"):
        shots.render_frames(shot, [])


@pytest.mark.parametrize("move", canvas.CAMERAS)
def test_camera_moves_are_read_from_the_picture(move: str) -> None:
    for backdrop, panels in (("pale blue", True), ("waves", False), ("night", False)):
        for size in shots.SIZES.values():
            _, frames, _ = draw("talk", 3, camera=move, backdrop=backdrop, panels=panels, width=size[0],
                                   height=size[1])  # fmt: skip
            assert measure_camera(worn(frames)) == move, (backdrop, size)


def test_falling_shapes_look_the_same_through_a_still_camera() -> None:
    shot, frames, _ = draw("fall", 2)
    drawn = shots.render_frames(replace(shot, kind="tour")).astype(int)
    above_the_floor = slice(0, 108)
    assert np.abs(drawn - frames)[:, above_the_floor].mean() < 1.0


@pytest.mark.parametrize("ambience", backdrops.AMBIENCES)
def test_ambiences_move_and_are_drawn_by_their_seed(ambience: str) -> None:
    shot, frames, _ = draw("view", 5, backdrop=ambience, camera="still")
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.01
    assert np.array_equal(frames, shots.render_frames(shot))
    assert not np.array_equal(frames, shots.render_frames(replace(shot, seed=shot.seed + 1)))


def spoken(shot: shots.Shot, *starts: float) -> shots.Shot:
    people = [
        replace(person, words=("hello", "blue")[: number + 1], start=start)
        for number, (person, start) in enumerate(zip(shot.people, starts, strict=True))
    ]
    return replace(shot, people=tuple(people))


@pytest.mark.parametrize("style", ["dense", "short", "english"])
def test_captions_hold_what_is_said_in_the_order_of_speaking(style: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        shot = spoken(shots.sample_shot(rng, "pair", "all"), 1.2, 0.3)
        text = captions_people.shot_caption(shot, rng, style)
        assert [span.text for span in parse_speech(text).spans] == ["hello blue", "hello"], text
        if style == "dense":
            for person in shot.people:
                names = captions_people.WORDS["hair"][person.hair]["zh"]
                assert any(name in text for name in names), (seed, text)
    with pytest.raises(ValueError, match="dense"):
        captions_people.shot_caption(shot, rng, "poem")


def test_captions_say_what_the_camera_does_and_where_it_is() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        shot = shots.sample_shot(rng, "view")
        for style, language in (("dense", "zh"), ("english", "en")):
            text = captions_people.shot_caption(shot, rng, style).lower()
            if style == "dense" or shot.camera != "still":
                assert any(name in text for name in captions_people.WORDS["camera"][shot.camera][language]), text
            assert any(name in text for name in captions_people.WORDS["backdrop"][shot.backdrop][language]), text


def test_captions_of_a_touring_camera_name_no_other_wall_and_no_fixed_camera() -> None:
    rng, checked = np.random.default_rng(1), 0
    while checked < 60:
        shot = shots.sample_shot(rng, "tour")
        if shot.scene is None:
            continue
        checked += 1
        others = {*captions_people.WALLS} - {shot.backdrop}
        for style, language in (("short", "zh"), ("english", "en")):
            text = captions_people.shot_caption(shot, rng, style).lower()
            own = captions_people.WALLS[shot.backdrop][language]
            for wall in others:
                names = captions_people.WALLS[wall][language]
                assert not any(name in text and not any(name in word for word in own) for name in names), text
            if shot.camera != "still":
                assert "fixed" not in text and not any(name in text for name in captions_people.CAMERAS_ZH), text


def test_a_rolling_ball_touches_the_shape_once_and_moves_it_on() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        roll = rolling.sample_roll(rng, "all")
        times = np.linspace(0, 2, 400)
        ball, shape = rolling.places(roll, times)
        apart = np.abs(shape - ball)
        assert times[apart.argmin()] == pytest.approx(roll.contact, abs=0.006)
        before = times < roll.contact
        assert np.ptp(shape[before]) < 1e-9 and (shape[-1] - shape[0]) * roll.direction > 0.01
        assert (ball[~before][-1] - ball[~before][0]) * roll.direction < 0
        sound = rolling.render_roll_sound(roll, 1.0)
        hit = int(roll.contact * 48_000)
        assert np.abs(sound).max() < 0.95
        assert np.abs(sound[:, :hit]).max() < 0.01 < 0.1 < np.abs(sound[:, hit : hit + 480]).max()


def test_a_ball_that_touches_where_it_is_widest_has_a_place() -> None:
    """Rounding made a square root's argument negative there, and the ball vanished from the whole clip."""
    roll = rolling.sample_roll(np.random.default_rng([1950]), "train")
    assert np.isfinite(rolling.places(roll, np.linspace(0, 2, 9))).all()


def test_captions_of_rolling_balls_name_both_things() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        shot = shots.sample_shot(rng, "roll")
        assert shot.roll is not None and shot.roll.ball_colour != shot.roll.colour
        for style, language in (("dense", "zh"), ("short", "zh"), ("english", "en")):
            text = captions_people.shot_caption(shot, rng, style).lower()
            for value in (shot.roll.ball_colour, shot.roll.colour):
                assert any(name in text for name in captions.WORDS["colour"][value][language]), text
            assert any(name in text for name in captions.WORDS["shape"][shot.roll.shape][language]), text
        text = captions_people.shot_caption(shot, rng, "dense", moment=True)
        assert f"{shot.roll.contact:.1f}秒" in text


def test_shaded_shapes_are_drawn_and_called_by_a_shade() -> None:
    rng = np.random.default_rng(0)
    for kind in ("fall", "roll"):
        shot = shots.recolour(shots.sample_shot(rng, kind, "train"), rng, "shaded")
        body = shot.scene or shot.roll
        assert body is not None and body.colour in world.SHADES
        middle = np.linalg.norm(np.array(body.rgb) - world.SHADES[body.colour]) / world.MOST_SHADE_TINT
        assert middle <= np.linalg.norm(np.subtract(world.SHADES[body.colour], world.COLOURS[body.tint or ""])) + 1e-6
        text = captions_people.shot_caption(shot, rng, "dense")
        assert captions.WORDS["colour"][body.colour]["zh"][0] in text
        shown = picture_labels.picture_labels(shot, 13, 8, 8) == picture_labels.CLASS_OF[body.colour, body.shape]
        assert shown.any()
        if shot.roll is not None:
            assert shot.roll.ball_colour in world.SHADES and shot.roll.ball_colour != body.colour
            assert captions.WORDS["colour"][shot.roll.ball_colour]["zh"][0] in text
            last = shots.render_frames(shot)[-1].astype(int)
            assert (np.abs(last - world.SHADES[shot.roll.ball_colour]).max(-1) < 25).any()
        assert shots.shot_from_dict(json.loads(json.dumps(asdict(shot)))) == shot


def test_rolling_shapes_stand_on_the_floor() -> None:
    shot, frames, _ = draw("roll", 1)
    assert shot.roll is not None
    colour = np.array(world.COLOURS[shot.roll.colour])
    rows = np.flatnonzero((np.abs(frames[0].astype(int) - colour).max(-1) < 25).any(axis=1))
    assert rows.max() == pytest.approx(world.FLOOR * shot.height - 1, abs=1.5)

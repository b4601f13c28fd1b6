from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training import measure, world, world_sound
from training.measure_sound import find_onsets, measure_sound


def worn(frames: np.ndarray, rng: np.random.Generator, blur: float = 0.8, noise: float = 4.0) -> np.ndarray:
    """Frames with the softness and the noise of an autoencoder's decoder."""
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (blur / 3, blur, blur, 0))
    return np.clip(soft + rng.normal(0, noise, frames.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measured() -> list[tuple[world.Scene, measure.ClipMeasure]]:
    rng = np.random.default_rng(11)
    scenes = [world.sample_scene(rng, "all") for _ in range(28)]
    return [
        (scene, measure.measure_clip(worn(world.render_frames(scene), rng), world.render_sound(scene)))
        for scene in scenes
    ]


def test_colour_shape_and_side_are_read_from_the_picture(measured: list) -> None:
    for scene, clip in measured:
        picture = clip.picture
        assert (picture.colour, picture.shape, picture.column) == (scene.colour, scene.shape, scene.column)
        assert picture.radius == pytest.approx(scene.radius, rel=0.12)


def test_material_and_side_are_heard(measured: list) -> None:
    for scene, clip in measured:
        assert (clip.sound.material, clip.sound.column) == (scene.shape, scene.column)


def test_contacts_are_seen_within_30_ms_and_heard_within_20_ms(measured: list) -> None:
    for scene, clip in measured:
        truth = [hit.time for hit in world.contacts(scene)]
        assert clip.picture.contacts == pytest.approx(truth, abs=0.03)
        assert clip.sound.onsets == pytest.approx(truth, abs=0.02)


def test_contacts_of_many_noisy_tracks_are_within_30_ms() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(world.NUM_FRAMES) / world.FPS
    good = 0
    for _ in range(400):
        scene = world.sample_scene(rng, "all")
        centre = world.FLOOR - scene.radius - world.heights(scene, times) + rng.normal(0, 0.0015, len(times))
        found = measure.find_contacts(centre, scene.radius, world.FPS)
        truth = [hit.time for hit in world.contacts(scene)]
        good += len(found) == len(truth) and bool(np.abs(np.subtract(found, truth)).max() < 0.03)
    assert good >= 0.98 * 400


def test_own_sound_fits_and_anothers_does_not(measured: list) -> None:
    seen = [clip.picture.contacts for _, clip in measured]
    heard = [clip.sound.onsets for _, clip in measured]
    own = [measure.sync(*pair).all_within(0.08) for pair in zip(seen, heard, strict=True)]
    assert np.mean(own) >= 0.98
    for shift in (1, 5, 9):
        others = [
            measure.sync(*pair).all_within(0.08) for pair in zip(seen, np.roll(_boxed(heard), shift), strict=True)
        ]
        assert np.mean(others) < 0.2


def _boxed(values: list) -> np.ndarray:
    box = np.empty(len(values), dtype=object)
    box[:] = values
    return box


def test_sync_counts_pairs_in_order() -> None:
    fit = measure.sync((0.5, 1.0), (0.52, 1.2))
    assert fit.same_count and fit.first_within(0.08) and not fit.all_within(0.08)
    assert fit.errors == pytest.approx((0.02, 0.2)) and fit.share_within(0.08) == 0.5
    assert not measure.sync((0.5, 1.0), (0.5,)).all_within(0.08)
    assert not measure.sync((), ()).all_within(0.08) and not measure.sync((), ()).first_within(1.0)


def test_nothing_is_found_where_nothing_is() -> None:
    rng = np.random.default_rng(3)
    grey = np.clip(rng.normal(100, 5, (49, 64, 64, 3)), 0, 255).astype(np.uint8)
    picture = measure.measure_picture(grey)
    assert picture.shape is None and picture.colour is None and picture.contacts == ()
    assert find_onsets(1e-4 * rng.standard_normal((2, 48_000))) == ()
    assert find_onsets(np.zeros((2, 0))) == ()
    steady = 0.1 * rng.standard_normal((2, 96_000))
    assert len(measure_sound(steady).onsets) <= 1


def test_a_shape_that_never_falls_has_no_contacts() -> None:
    scene = world.sample_scene(np.random.default_rng(4), "all")
    hanging = np.repeat(world.render_frames(scene)[:1], 49, axis=0)
    picture = measure.measure_picture(hanging)
    assert picture.shape == scene.shape and picture.contacts == ()


def test_smeared_sound_keeps_its_onsets() -> None:
    rng = np.random.default_rng(6)
    for _ in range(8):
        scene = world.sample_scene(rng, "all")
        sound = world.render_sound(scene)
        # A vocoder's smear: energy leaks some milliseconds to both sides of the attack.
        leak = np.exp(-np.abs(np.arange(-400, 401)) / 120) * rng.standard_normal(801)
        smeared = np.stack([np.convolve(channel, leak / np.linalg.norm(leak), mode="same") for channel in sound])
        truth = [hit.time for hit in world.contacts(scene)]
        assert find_onsets(smeared.astype(np.float32)) == pytest.approx(truth, abs=0.04)


def test_a_ring_that_trembles_is_one_onset() -> None:
    scene = world.sample_scene(np.random.default_rng(8), "all")
    first = world.contacts(scene)[0].time
    alone = world_sound.render_impacts("star", scene.radius, 0.5, [(first, 2.0)], world.CLIP_SECONDS, 48_000, 1)
    time = np.arange(alone.shape[1]) / 48_000 - first
    trembling = alone * (0.6 + 0.4 * np.cos(2 * np.pi * 7 * time))
    assert find_onsets(trembling) == pytest.approx([first], abs=0.02)

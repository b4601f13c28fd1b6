"""What each video token shows, and that the heads that are asked teach the layers before them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nava_core.models.transformer_nava import NavaTransformer3DModel
from training import sound_labels
from training.backdrops import POST_GAP, POSTS, WALLS, post_boxes
from training.canvas import CAMERAS
from training.middle_heads import MiddleHeads
from training.people import HAIR, SKINS
from training.picture_labels import (
    _NAMES,
    BACKDROPS,
    CLASSES,
    FRAMES,
    POST,
    UNIT,
    ClassScores,
    camera_labels,
    class_weights,
    distance_labels,
    error_weights,
    picture_labels,
)
from training.shots import KINDS, canvas_of, points_of_interest, render_frames, sample_shot
from training.world import COLOURS, FLOOR, FPS, PAIRS, SHAPES

TINTS = {"hair": HAIR, "skin": SKINS, "clothes": COLOURS, "backdrop": WALLS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_token_is_said_to_show_is_in_its_pixels(kind: str) -> None:
    shown = []
    for seed in range(4):
        shot = sample_shot(np.random.default_rng(seed), kind)
        pixels = render_frames(shot, [np.zeros(shot.num_frames, np.float32)] * len(shot.people)).astype(np.float32)
        rows, columns = shot.height // 32, shot.width // 32
        labels = picture_labels(shot, 13, rows, columns).reshape(13, rows, columns)
        for number, row, column in np.ndindex(*labels.shape):
            first, second = _NAMES[labels[number, row, column]]
            if first == "backdrop":
                continue
            patch = pixels[max(4 * number - 2, 0), 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            if (first, second) == POST:
                tint = POSTS[shot.backdrop].colour
            else:
                tint = TINTS[first][second] if first in TINTS else COLOURS[first]
            # Shaded by up to a fifth, and never the whole of the patch.
            distance = np.linalg.norm(patch - np.array(tint), axis=-1)
            shown.append((distance < 60).mean() > 0.05)
    assert np.mean(shown) > 0.9


def test_a_shape_is_found_in_every_frame_however_small() -> None:
    shot = sample_shot(np.random.default_rng(1), "fall")
    assert shot.scene is not None
    wanted = _NAMES.index((shot.scene.colour, shot.scene.shape))
    assert picture_labels(shot, 13, 4, 4).reshape(13, -1).eq(wanted).any(dim=1).all()


def test_distances_are_those_of_the_frames_that_a_latent_frame_holds() -> None:
    shot = sample_shot(np.random.default_rng(1), "fall")
    labels = picture_labels(shot, 13, 4, 4)
    distances = distance_labels(shot, labels, 13)
    shows = labels >= BACKDROPS
    assert torch.equal(distances.isnan(), ~shows[:, None].expand(-1, FRAMES))
    latent_frame = torch.arange(13).repeat_interleave(16)[shows]
    lower = points_of_interest(shot)[0][:, 3] / shot.height  # boxes have a margin of a pixel or two
    for frame, away in zip(latent_frame.tolist(), distances[shows] * UNIT, strict=True):
        drawn = lower[[max(4 * frame - back, 0) for back in (3, 2, 1, 0)]]
        assert np.abs(FLOOR - drawn - away.numpy()).max() < 0.04
    talking = sample_shot(np.random.default_rng(1), "talk")
    assert distance_labels(talking, picture_labels(talking, 13, 4, 4), 13).isnan().all()


def test_a_rolling_ball_is_nowhere_nearer_than_when_it_touches() -> None:
    shot = sample_shot(np.random.default_rng(2), "roll")
    assert shot.roll is not None
    labels = picture_labels(shot, 13, 4, 4)
    distances = distance_labels(shot, labels, 13).reshape(13, 16, FRAMES)
    ball = labels.reshape(13, 16) == _NAMES.index((shot.roll.ball_colour, "ball"))
    away = {frame: distances[frame][ball[frame]][0] for frame in range(1, 13) if ball[frame].any()}
    moments = {4 * frame - back: away[frame][3 - back].item() for frame in away for back in range(FRAMES)}
    nearest = min(moments, key=lambda moment: moments[moment])
    assert abs(nearest - shot.roll.contact * FPS) <= 1 and moments[nearest] < 0.3
    struck = labels.reshape(13, 16) == _NAMES.index((shot.roll.colour, shot.roll.shape))
    assert distances[0][struck[0]].eq(0).all() and distances[12][struck[12]].gt(0).all()


@pytest.mark.parametrize("camera", CAMERAS)
def test_posts_stand_where_the_camera_says(camera: str) -> None:
    shot = replace(sample_shot(np.random.default_rng(3), "view", size="square"), camera=camera)
    across, zoom = (camera_labels(shot, 13) * UNIT).unflatten(1, (2, FRAMES)).unbind(1)
    for number in (1, 7, 12):
        boxes = [box[4 * number] for box in post_boxes(canvas_of(shot), shot.backdrop)]
        whole = [box for box in boxes if 0 < box[0] < box[2] < shot.width]
        assert whole
        for left, _, right, _ in whole:
            x = ((left + right) / 2 - shot.width / 2) / shot.height / zoom[number, 3].exp() + across[number, 3]
            assert abs(x / POST_GAP % 1 - 0.5) < 0.05


def test_heads_are_asked_for_places_where_they_are_known() -> None:
    torch.manual_seed(0)
    sizes = {"ffn_dim": 16, "text_dim": 8, "num_layers": 1, "num_single_layers": 1}
    heads = MiddleHeads(NavaTransformer3DModel(num_attention_heads=1, attention_head_dim=12, **sizes))
    tokens, distances = torch.randn(2, 6, 12), torch.full((2, 6, FRAMES), torch.nan)
    assert heads._distance_loss(tokens, None) == heads._distance_loss(tokens, distances) == 0
    distances[1, 2] = heads.distance(tokens)[1, 2].detach() + 1
    assert heads._distance_loss(tokens, distances).item() == pytest.approx(1 - 0.04)
    assert heads._camera_loss(tokens, None) == 0
    paths = heads.camera_path(tokens[:, ::2]).detach()  # the first of each latent frame's two tokens says so
    said = heads._camera_loss(tokens, paths)
    assert said.item() > 0 and heads._camera_loss(tokens[:, ::2].repeat_interleave(2, 1), paths).item() == 0


def test_a_ball_that_has_not_come_in_yet_is_nowhere() -> None:
    shot = sample_shot(np.random.default_rng(0), "roll")
    assert shot.roll is not None
    left, _, right, _ = points_of_interest(shot)[-2:][0].T
    outside = (right <= left)[np.maximum(4 * np.arange(13) - 2, 0)]
    labels = picture_labels(shot, 13, 4, 4).reshape(13, -1)
    there = labels.eq(_NAMES.index((shot.roll.ball_colour, "ball"))).any(dim=1).numpy()
    assert outside.any() and not there[outside].any() and there[~outside].all()


def test_what_stands_before_the_backdrop_counts_more_in_its_own_latents_and_those_beside_it_in_time() -> None:
    assert all((names[0] == "backdrop") == (number < BACKDROPS) for number, names in enumerate(_NAMES))
    labels = torch.zeros(2, 5 * 2 * 3, dtype=torch.long)
    place = 2 * 6 + 4  # the third latent frame's lower middle token
    still = torch.full((2, 30, FRAMES), torch.nan)
    there = torch.zeros(5, 4, 6, dtype=torch.bool)
    there[1:4, 2:, 2:4] = True

    def ratio(distances: torch.Tensor) -> float:
        """How many times as much as the backdrop's the thing's latents count."""
        weights = error_weights(labels, distances, 5, 4, 6, classes, 2.0)
        assert weights.shape == (2, 1, 5, 4, 6) and weights.mean().item() == pytest.approx(1.0)
        behind = weights[0].max()
        assert torch.equal(weights[1, 0] > 1.5 * behind, there) and weights[1, 0][there].unique().numel() == 1
        return float(weights[1, 0][there][0] / behind)

    classes = class_weights(3.0, {"blue": 2.5})
    for names, expected in ((("clothes", "blue"), 3.0), (("red", "star"), 3.0), (("blue", "star"), 7.5)):
        labels[1, place] = _NAMES.index(names)
        assert ratio(still) == pytest.approx(expected)
    hangs, falls, waits = still.clone(), still.clone(), still.clone()
    hangs[1, place], falls[1, place] = 3 + 0.02 * torch.arange(FRAMES), 0.2 * torch.arange(FRAMES)
    waits[1, place] = 0.02 * torch.arange(FRAMES)
    assert [ratio(distances) for distances in (hangs, falls, waits)] == pytest.approx([7.5, 15.0, 15.0])


def test_pairs_of_colour_and_shape_that_were_never_seen_are_named_too() -> None:
    torch.manual_seed(0)
    colours, shapes = torch.randn(len(COLOURS), 32), torch.randn(len(SHAPES), 32)

    def states(split: str) -> torch.Tensor:
        return torch.stack([colours[[*COLOURS].index(a)] + shapes[[*SHAPES].index(b)] for a, b in PAIRS[split]])

    def named(split: str) -> torch.Tensor:
        return torch.tensor([_NAMES.index(pair) for pair in PAIRS[split]])

    scores = ClassScores(32)
    optimizer = torch.optim.AdamW(scores.parameters(), lr=0.03)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(scores(states("train")), named("train"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for split in ("train", "held_out"):
        assert torch.equal(scores(states(split)).argmax(-1), named(split))
    assert scores(torch.zeros(2, 3, 32)).shape == (2, 3, CLASSES)


def test_the_heads_teach_the_layers_before_them_and_no_others() -> None:
    torch.manual_seed(0)
    model = NavaTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, audio_in_channels=4,
        audio_out_channels=4, text_dim=8, text_len=8, freq_dim=8, ffn_dim=16, num_layers=1, num_single_layers=3,
        speaker_dim=6,
    )  # fmt: skip
    heads = MiddleHeads(model)
    turns = torch.full((2, 10), sound_labels.UNKNOWN)
    silent = torch.zeros(2, 2, 6)
    clip = torch.randn(2, 4, 2, 4, 4), torch.randn(2, 10, 4), torch.tensor([500.0]), torch.randn(2, 8, 8)
    sound = torch.randint(0, sound_labels.CLASSES, (2, 10))
    sound[1] = sound_labels.UNKNOWN
    still = torch.zeros(2, dtype=torch.long)
    above = torch.full((2, 8, FRAMES), torch.nan)
    for loss in range(2):
        model.zero_grad()
        model(*clip)
        heads.losses(torch.randint(0, CLASSES, (2, 8)), above, None, still, sound, turns, silent)[loss].backward()
        taught = [any(value.grad is not None for value in block.parameters()) for block in model.transformer_blocks]
        assert taught == [True, True, True, False]
    model(*clip)
    nothing = torch.full((2, 10), sound_labels.UNKNOWN)
    assert heads.losses(None, None, None, still, nothing, turns, silent) == (0, 0)
    model(*clip)
    assert heads.losses(None, None, None, still, nothing, turns, torch.randn(2, 2, 6)) == (0, 0)  # nobody speaks
    model(*clip)
    turns[0, :4] = 1
    assert heads.losses(None, None, None, still, nothing, turns, silent)[1] == 0  # no voice is given


def test_a_token_is_asked_for_the_voice_whose_turn_it_is() -> None:
    """Of the voices of the whole batch, of which one sample has the second alone."""
    torch.manual_seed(0)
    model = NavaTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1, ffn_dim=16, speaker_dim=24,
        text_dim=8, freq_dim=8,
    )  # fmt: skip
    heads = MiddleHeads(model)
    assert heads.voice is not None
    heads.voice.weight.data.copy_(torch.eye(24))
    heads.voice.bias.data.zero_()
    speakers = torch.randn(2, 2, 24)
    speakers[1, 0] = 0
    turns = torch.tensor([[0, 0, 1, 1], [sound_labels.UNKNOWN, 1, 1, 0]])
    tokens = torch.cat([speakers[0, [0, 0, 1, 1]][None], speakers[1, [1, 1, 1, 0]][None]])
    right, wrong = heads._voice_loss(tokens, turns, speakers), heads._voice_loss(tokens.flip(1), turns, speakers)
    assert right < 0.1 and wrong > 3

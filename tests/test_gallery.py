"""The gallery's library and what its cards ask for."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gallery_page import Heard, gallery_page, make_clip
from gradio.utils import get_upload_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from studio_server import get

from nava_core.engine.jobs import Job, UnknownJob
from nava_core.media import probe, read_recipe
from nava_core.request import RequestError
from ui import gallery_handlers, gallery_views, recipe_drop
from ui.catalogue import Catalogue
from ui.gallery import build_gallery
from ui.gallery_handlers import Action, Filters
from ui.library.clips import Clip, UnknownClip
from ui.library.gallery import GALLERY_DATABASE, TRASH_SECONDS, Gallery, private_paths
from ui.reuse import PARTS
from ui.service import Service

TEXT = Catalogue("en")
NASTY = "<img src=x onerror='window.bad=1'> & \"quoted\" {{this}} ${1+1}"
EVERYTHING = Filters("", "all", 24, ())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Finished jobs whose files are copied by who changes them."""
    folder = tmp_path_factory.mktemp("made")
    film = make_clip(folder, "film.mp4", "A red ball ~~Hello there~~", seed=101)
    return {"film": film, "sound": make_clip(folder, "sound.wav", "雨声 over a tin roof", seed=202)}


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    gallery = Gallery(tmp_path / GALLERY_DATABASE, tmp_path)
    yield gallery
    gallery.close()


def put(gallery: Gallery, job: Job, job_id: str = "", **changes: Any) -> Job:
    """The job's clip in the gallery's folder, under an id of its own, and taken in."""
    assert job.result is not None and job.recipe is not None
    job_id = job_id or job.id
    path = gallery.output_dir / f"20260101-000000-{job_id}{job.result.suffix}"
    path.write_bytes(job.result.read_bytes())
    changes = {"recipe": job.recipe, "ended": 1000.0} | changes
    moved = replace(job, id=job_id, result=path, **changes)
    assert gallery.add(moved)
    return moved


def reopened(gallery: Gallery) -> Gallery:
    gallery.close()
    return Gallery(gallery.database_path, gallery.output_dir)


# Library


def test_a_finished_job_is_kept_over_restarts_with_what_it_was_made_of(gallery: Gallery, clips: dict[str, Job]) -> None:
    job = put(gallery, clips["film"], variations="abc")
    assert not gallery.add(job)
    again = reopened(gallery)
    (clip,) = again.clips("")
    assert (clip.id, clip.kind, clip.size, clip.seed, clip.model) == (job.id, "mp4", (96, 64), 101, "nava-nano")
    assert clip.seconds == pytest.approx(13 / 24) and clip.variations == "abc" and clip.created == 1000.0
    assert clip.poster is not None and clip.poster.read_bytes().startswith(b"\xff\xd8")
    assert not clip.missing and clip.recipe == job.recipe
    again.close()


def test_only_what_is_done_is_taken_in_and_nothing_from_elsewhere(gallery: Gallery, clips: dict[str, Job]) -> None:
    for state in ("queued", "running", "failed", "cancelled"):
        assert not gallery.add(replace(clips["film"], state=state))
    with pytest.raises(ValueError, match="not in the output folder"):
        gallery.add(clips["film"])
    assert gallery.clips("") == []


def test_owners_never_meet(gallery: Gallery, clips: dict[str, Job]) -> None:
    put(gallery, clips["film"], "a" * 16, owner="ann", variations="g")
    put(gallery, clips["film"], "b" * 16, owner="bob", variations="g")
    assert [clip.id for clip in gallery.clips("ann")] == ["a" * 16]
    assert gallery.clips("") == [] and gallery.stack("ann", "g").clips[0].id == "a" * 16
    stacks, total = gallery.stacks("bob")
    assert total == 1 and [clip.id for clip in stacks[0].clips] == ["b" * 16]
    for forbidden in (
        gallery.clip,
        gallery.favourite,
        gallery.delete,
        gallery.undo,
        gallery.last_frame,
        gallery.file_of,
    ):
        with pytest.raises(UnknownClip):
            forbidden("bob", "a" * 16)
    with pytest.raises(UnknownClip):
        gallery.export_copy("bob", "a" * 16, with_recipe=True)


def test_search_finds_words_in_prompts_seeds_and_models(gallery: Gallery, clips: dict[str, Job]) -> None:
    film = put(gallery, clips["film"], recipe=clips["film"].recipe | {"original_prompt": "Une BALLE rouge"})
    sound = put(gallery, clips["sound"])
    for search in ("hello", "RED ball", "101", "balle", "nano there", ""):
        assert film.id in [clip.id for clip in gallery.clips("", search)], search
    assert [clip.id for clip in gallery.clips("", "雨声 tin")] == [sound.id]
    for search in ("hello tin", "%", "_", "x' OR 1=1 --", "\ud800", "h%o"):
        assert gallery.clips("", search) == [], search
    gallery.favourite("", sound.id)
    assert [clip.id for clip in gallery.clips("", favourites=True)] == [sound.id]
    gallery.favourite("", sound.id, False)
    assert gallery.clips("", favourites=True) == []


@settings(max_examples=60)
@given(prompt=st.text(), other=st.text())
def test_any_prompt_is_found_by_its_own_words_and_any_search_is_answered(
    prompt: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gallery = _shared_gallery(tmp_path_factory)
    for clip in gallery._index.everything():
        gallery._index.forget(clip.id)
    gallery._index.add(Clip("x", "", gallery.output_dir / "x.mp4", {"prompt": prompt, "seed": 5}, 1.0))
    assert gallery.clip("", "x").prompt == prompt
    assert [clip.id for clip in gallery.clips("", prompt)] == ["x"]
    gallery.stacks("", other)


_GALLERIES: list[Gallery] = []


def _shared_gallery(factory: pytest.TempPathFactory) -> Gallery:
    if not _GALLERIES:
        folder = factory.mktemp("searched")
        _GALLERIES.append(Gallery(folder / GALLERY_DATABASE, folder))
    return _GALLERIES[0]


def test_pages_of_stacks_hold_each_clip_once(gallery: Gallery) -> None:
    for number in range(7):
        group = "g" if number in (1, 3, 5) else None
        path = gallery.output_dir / f"{number}.mp4"
        gallery._index.add(Clip(str(number), "", path, {"prompt": "p"}, float(number), variations=group))
    first, total = gallery.stacks("", limit=2)
    rest, _ = gallery.stacks("", offset=2, limit=10)
    assert total == 5 and [stack.id for stack in first] == ["6", "g"]
    assert [clip.id for clip in first[1].clips] == ["1", "3", "5"]
    assert [stack.id for stack in rest] == ["4", "2", "0"]
    assert [clip.id for clip in gallery.clips("", offset=1, limit=2)] == ["5", "4"]


def test_a_deleted_clip_comes_back_and_goes_for_good_after_a_month(gallery: Gallery, clips: dict[str, Job]) -> None:
    job = put(gallery, clips["film"])
    content = job.result.read_bytes()
    gallery.delete("", job.id)
    assert not job.result.exists() and gallery.clips("") == [] and gallery.stacks("", shown="deleted")[1] == 1
    with pytest.raises(FileNotFoundError):
        gallery.file_of("", job.id)
    again = reopened(gallery)
    again.undo("", job.id)
    assert job.result.read_bytes() == content and len(again.clips("")) == 1
    again.delete("", job.id)
    job.result.write_bytes(b"another file took its name")
    again.undo("", job.id)
    assert again.file_of("", job.id) != job.result and again.file_of("", job.id).read_bytes() == content

    again.delete("", job.id)
    trash = again.output_dir / ".studio" / "trash"
    assert again.purge() == 0 and len(list(trash.iterdir())) == 1
    again._index._change("UPDATE clips SET deleted = ?", time.time() - TRASH_SECONDS - 1)
    last = reopened(again)
    assert list(trash.iterdir()) == [] and last.stacks("", shown="deleted") == ([], 0)
    with pytest.raises(UnknownClip):
        last.undo("", job.id)
    last.close()


def test_a_file_that_is_gone_is_shown_as_missing_and_breaks_nothing(gallery: Gallery, clips: dict[str, Job]) -> None:
    job = put(gallery, clips["film"])
    job.result.unlink()
    assert gallery.clips("")[0].missing
    with pytest.raises(FileNotFoundError, match="not in the output folder"):
        gallery.export_copy("", job.id, with_recipe=False)
    card = gallery_views.grid(TEXT, gallery.stacks("")[0])
    assert "data-missing" in card and "data-src" not in card and 'data-action="open"' not in card
    gallery.delete("", job.id)
    gallery.undo("", job.id)
    assert gallery.clips("")[0].missing


def test_a_link_out_of_the_folder_is_not_followed(gallery: Gallery, clips: dict[str, Job], tmp_path: Path) -> None:
    job = put(gallery, clips["film"])
    job.result.unlink()
    job.result.symlink_to(clips["film"].result)
    with pytest.raises(FileNotFoundError):
        gallery.file_of("", job.id)
    assert gallery.scan() == 0


@pytest.mark.parametrize("kind", ["film", "sound"])
def test_an_exported_copy_plays_and_tells_nothing(gallery: Gallery, clips: dict[str, Job], kind: str) -> None:
    job = put(gallery, clips[kind])
    words = job.request.prompt.encode()
    assert gallery.export_copy("", job.id, with_recipe=True) == job.result and words in job.result.read_bytes()
    copy = gallery.export_copy("", job.id, with_recipe=False)
    with pytest.raises(ValueError, match="holds no recipe"):
        read_recipe(copy)
    content = copy.read_bytes()
    assert words not in content and b"nava" not in content and b"Lavf" not in content
    assert copy.name == job.result.name and probe(copy) == probe(job.result)
    assert copy.is_relative_to(gallery.output_dir) and read_recipe(job.result) == job.recipe
    os.utime(copy.parent, (0, 0))
    gallery.purge()
    assert not copy.exists()


def test_the_last_frame_is_the_one_that_a_player_ends_with(gallery: Gallery, clips: dict[str, Job]) -> None:
    film, sound = put(gallery, clips["film"]), put(gallery, clips["sound"])
    path = gallery.last_frame("", film.id)
    with Image.open(path) as picture:
        red = [picture.getpixel((x, 32))[0] for x in (10, 86)]
    assert picture.size == (96, 64) and red[0] < 60 and red[1] > 150  # the square has arrived at the right
    assert gallery.last_frame("", film.id) == path and path.is_relative_to(gallery.output_dir)
    with pytest.raises(ValueError, match="no picture"):
        gallery.last_frame("", sound.id)
    assert gallery.clip("", sound.id).poster is not None  # its waveform


def test_files_of_ours_are_found_and_those_of_the_queue_left_to_it(gallery: Gallery, clips: dict[str, Job]) -> None:
    film = clips["film"]
    folder = gallery.output_dir / "batch"
    folder.mkdir()
    (folder / "idx0_A-av-0.mp4").write_bytes(film.result.read_bytes())
    (gallery.output_dir / f"20260101-000000-{clips['sound'].id}.wav").write_bytes(clips["sound"].result.read_bytes())
    (gallery.output_dir / "broken.mp4").write_bytes(b"no film")
    hidden = gallery.output_dir / ".studio" / "hidden.mp4"
    hidden.write_bytes(film.result.read_bytes())

    def job(job_id: str) -> Job:
        if job_id == clips["sound"].id:
            return clips["sound"]
        raise UnknownJob(job_id)

    assert gallery.scan(SimpleNamespace(job=job)) == 1
    assert gallery.scan() == 1 and gallery.scan() == 0
    found = {clip.kind: clip for clip in gallery.clips("")}
    assert found["mp4"].path.name == "idx0_A-av-0.mp4" and found["mp4"].id != film.id
    assert found["wav"].id == clips["sound"].id
    gallery.delete("", found["mp4"].id)
    assert gallery.scan() == 0


def test_a_clip_that_cannot_be_drawn_has_no_poster_and_stays(gallery: Gallery, clips: dict[str, Job]) -> None:
    path = gallery.output_dir / "cut.mp4"
    path.write_bytes(clips["film"].result.read_bytes()[:900])
    gallery.add(replace(clips["film"], result=path))
    assert gallery.clips("")[0].poster is None and not gallery.clips("")[0].missing


class Engine:
    """Jobs that a test puts there, and a change that it announces."""

    def __init__(self) -> None:
        self.found: list[Job] = []
        self.changed, self.over = threading.Semaphore(1), False

    def jobs(self) -> list[Job]:
        return self.found

    def job(self, job_id: str) -> Job:
        raise UnknownJob(job_id)

    def changes(self) -> Iterator[int]:
        while self.changed.acquire(timeout=60) and not self.over:
            yield 1


def test_watching_takes_in_what_finishes_and_outlives_a_bad_clip(gallery: Gallery, clips: dict[str, Job]) -> None:
    engine = Engine()
    good = gallery.output_dir / "good.mp4"
    good.write_bytes(clips["film"].result.read_bytes())
    engine.found = [clips["sound"], replace(clips["film"], result=good, owner="ann", id="c" * 16)]
    gallery.watch(engine)
    deadline = time.monotonic() + 60
    while not gallery.clips("ann") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [clip.id for clip in gallery.clips("ann")] == ["c" * 16]
    engine.over = True
    engine.changed.release()


def test_a_file_is_its_owners_until_it_is_deleted(gallery: Gallery, clips: dict[str, Job]) -> None:
    job = put(gallery, clips["film"], "f" * 16, owner="ann")
    assert job.result is not None
    clip, poster = gallery.clip("ann", job.id).path, gallery.output_dir / ".studio" / "posters" / f"{job.id}.jpg"
    for path in (clip, poster):
        assert gallery.owns("ann", path) and not gallery.owns("ben", path) and not gallery.owns("", path)
    assert not gallery.owns("ann", clip.with_name("other.mp4")) and not gallery.owns("ann", Path("/etc/passwd"))
    gallery.delete("ann", job.id)
    assert not gallery.owns("ann", clip)


def test_voices_and_pictures_outlive_the_queues_copies(gallery: Gallery, clips: dict[str, Job]) -> None:
    voice = gallery.output_dir / ".studio" / "files" / ("0" * 32) / "anna.wav"
    voice.parent.mkdir(parents=True)
    voice.write_bytes(clips["sound"].result.read_bytes())
    recipe = clips["film"].recipe | {"speakers": [str(voice), None]}
    put(gallery, clips["film"], owner="ann", recipe=recipe)
    voice.unlink()
    kept = Path(gallery.clips("ann")[0].recipe["speakers"][0])
    assert kept.read_bytes() == clips["sound"].result.read_bytes() and kept.name == "anna.wav"

    # A file that somebody brings may name any path: only one's own copies are followed.
    dropped = recipe | {"image": "/etc/passwd", "speakers": [str(kept), None, "/etc/hostname", 5, "C:\\voices\\b.wav"]}
    own = gallery.own_recipe("ann", dropped)
    assert own["speakers"] == [str(kept), None, "hostname", None, "b.wav"] and own["image"] == "passwd"
    assert gallery.own_recipe("bob", dropped)["speakers"][0] == "anna.wav"


def test_a_newer_or_broken_index_is_refused_with_a_way_out(tmp_path: Path) -> None:
    database = tmp_path / GALLERY_DATABASE
    Gallery(database, tmp_path).close()
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="newer NAVA Studio"):
        Gallery(database, tmp_path)
    database.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(ValueError, match="move it away"):
        Gallery(database, tmp_path)


# Handlers


@pytest.fixture
def page(gallery: Gallery) -> tuple[Service, Any]:
    with gr.Blocks():
        panel = build_gallery(TEXT, gallery)
    return Service(None, None, TEXT, gallery=gallery), panel


def test_what_a_card_asks_for_is_handed_on(page: tuple[Service, Any], gallery: Gallery, clips: dict[str, Job]) -> None:
    service, panel = page
    first = put(gallery, clips["film"], "a" * 16, variations="g")
    put(gallery, clips["film"], "b" * 16, variations="g", ended=2000.0)

    def act(name: str, **values: Any) -> dict[Any, Any]:
        action = Action.read({"action": name, "id": first.id, "stack": "g"} | values, values.get("private"))
        return gallery_handlers.act(service, panel, "", EVERYTHING, action)

    assert act("open")[panel.opened]["id"] == first.id
    assert act("open")[panel.opened] != act("open")[panel.opened]  # asking again is a change
    assert act("seed")[panel.reuse]["parts"] == ["seed"]
    reuse = act("reuse")[panel.reuse]
    assert reuse["recipe"]["seed"] == 101 and set(reuse["parts"]) == set(PARTS)
    assert act("compare")[panel.compare]["ids"] == ["a" * 16, "b" * 16]
    continued = act("continue")[panel.continued]
    assert Path(continued["image"]).suffix == ".png" and continued["recipe"]["seed"] == 101
    assert act("unfold")[panel.view]["unfolded"] == ["g"]
    assert "exports" not in act("download")[panel.download]
    assert "exports" in act("download", private=True)[panel.download]

    updates = act("delete_all")
    assert updates[panel.removed] == ["a" * 16, "b" * 16] and "No clips yet" in updates[panel.grid]
    back = gallery_handlers.undo(service, panel, "", EVERYTHING, updates[panel.removed])
    assert "2 variations" in back[panel.grid] and back[panel.removed] == []


@pytest.mark.parametrize(
    "data", [None, 5, {}, {"action": "open"}, {"action": "__class__"}, {"action": ["open"], "id": 3}]
)
def test_a_browser_that_asks_for_nonsense_changes_nothing(page: tuple[Service, Any], data: Any) -> None:
    service, panel = page
    updates = gallery_handlers.act(service, panel, "", EVERYTHING, Action.read(data, "yes"))
    assert not {panel.opened, panel.reuse, panel.compare, panel.continued, panel.removed} & updates.keys()


def test_more_is_shown_when_asked_for(page: tuple[Service, Any], gallery: Gallery) -> None:
    service, panel = page
    for number in range(30):
        gallery._index.add(Clip(f"{number}", "", gallery.output_dir / f"{number}.mp4", {"prompt": "p"}, float(number)))
    first = gallery_handlers.show(service, panel, "", EVERYTHING)
    assert first[panel.grid].count("<li") == 24 and first[panel.more] == gr.update(
        value="Show more (6 left)", visible=True
    )
    assert gallery_handlers.show(service, panel, "", EVERYTHING.longer())[panel.grid].count("<li") == 30
    assert "Nothing matches" in gallery_handlers.show(service, panel, "", replace(EVERYTHING, search="zz"))[panel.grid]


# A dropped clip


def upload(path: Path, name: str = "") -> dict[str, Any]:
    """As Gradio hands over what was uploaded."""
    folder = Path(get_upload_folder()) / "gallery-tests"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    return {"path": str(copy), "orig_name": name or path.name}


def test_a_dropped_clip_offers_its_recipe(page: tuple[Service, Any], clips: dict[str, Job]) -> None:
    service, panel = page
    for job in clips.values():
        updates = recipe_drop.read_dropped(service, panel.drop, "", upload(job.result, NASTY))
        assert updates[panel.drop.recipe]["seed"] == job.recipe["seed"]
        assert updates[panel.drop.choices]["visible"] and "<img" not in updates[panel.drop.found]["value"]


def test_what_is_not_ours_is_said(
    page: tuple[Service, Any], gallery: Gallery, clips: dict[str, Job], tmp_path: Path
) -> None:
    service, panel = page
    job = put(gallery, clips["film"])
    cut, text_file = tmp_path / "cut.mp4", tmp_path / "notes.txt"
    cut.write_bytes(job.result.read_bytes()[:500])
    text_file.write_text("hello")
    foreign = gallery.export_copy("", job.id, with_recipe=False)
    for path, words in ((cut, "cannot be read"), (text_file, "no .mp4 or .wav"), (foreign, "holds no recipe")):
        updates = recipe_drop.read_dropped(service, panel.drop, "", upload(path))
        assert words in updates[panel.drop.notice]["value"] and updates[panel.drop.recipe] is None
    outside = recipe_drop.read_dropped(service, panel.drop, "", {"path": str(job.result)})
    assert "no uploaded file" in outside[panel.drop.notice]["value"]
    with pytest.raises(RequestError, match="holds no recipe"):
        recipe_drop.dropped_recipe(TEXT, str(foreign), "x")


# The page as it is served


def test_what_is_private_is_not_served(gallery: Gallery, clips: dict[str, Job]) -> None:
    kept, gone = put(gallery, clips["film"], "a" * 16), put(gallery, clips["film"], "b" * 16)
    gallery.delete("", gone.id)
    trashed = next((gallery.output_dir / ".studio" / "trash").iterdir())
    with gallery_page(gallery, heard=Heard()) as url:
        assert get(url + gallery_views.file_address(kept.result)).status_code == 200
        assert get(url + gallery_views.file_address(gallery.clips("")[0].poster)).status_code == 200
        for path in (gallery.database_path, trashed):
            assert get(url + gallery_views.file_address(path)).status_code == 403
    assert str(gallery.database_path) in private_paths(gallery.database_path, gallery.output_dir)

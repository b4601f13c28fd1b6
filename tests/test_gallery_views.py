"""The gallery's cards as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ui import gallery_views
from ui.catalogue import Catalogue
from ui.library.clips import Clip, Stack

TEXT = Catalogue("en")
NASTY = "<img src=x onerror='window.bad=1'> & \"quoted\" {{this}} ${1+1}"


class Markup(HTMLParser):
    """The tags with their attributes, and the text; fails on what does not close."""

    VOID = ("img", "hr", "circle", "path", "rect")

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown_clip(prompt: str = "p", **fields: Any) -> Clip:
    recipe = {"prompt": prompt, "seed": 3, "width": 96, "height": 64, "seconds": 1.5} | fields.pop("recipe", {})
    return Clip(**{"id": "i", "owner": "", "path": Path(__file__), "recipe": recipe, "created": 1.0} | fields)


@settings(max_examples=80)
@given(st.text(max_size=200), st.text(alphabet=st.characters(exclude_characters="/\0", codec="utf-8"), max_size=40))
def test_whatever_was_written_stays_text(prompt: str, name: str) -> None:
    clip = shown_clip(prompt, path=Path("/out") / f"{name}.mp4", recipe={"original_prompt": prompt or None})
    markup = Markup(gallery_views.grid(TEXT, [Stack("i", (clip,))]))
    expected = {"ul", "li", "button", "div", "p", "small", "span", "svg", "path", "circle", "rect"}
    assert {tag for tag, _ in markup.tags} <= expected | {"details", "summary", "hr"}
    assert not any(name.startswith("on") for _, attributes in markup.tags for name in attributes)
    Markup(gallery_views.empty(TEXT, "all", prompt))
    Markup(gallery_views.found_recipe(TEXT, clip.recipe))
    Markup(gallery_views.download_link(clip.path, clip.path.name))


def actions(source: str) -> list[str]:
    return [attributes["data-action"] for _, attributes in Markup(source).tags if "data-action" in attributes]


def test_a_card_offers_what_its_clip_can_do() -> None:
    plain = actions(gallery_views.grid(TEXT, [Stack("i", (shown_clip(),))]))
    assert plain == ["open", "favourite", "open", "reuse", "prompt", "seed", "continue", "download", "delete"]
    rich = shown_clip(recipe={"speakers": [None, "/v.wav"], "image": "/i.png"})
    assert {"voices", "frame"} <= set(actions(gallery_views.grid(TEXT, [Stack("i", (rich,))])))
    sound = shown_clip(path=Path(__file__).with_suffix(".wav"))
    assert "continue" not in actions(gallery_views.grid(TEXT, [Stack("i", (sound,))]))
    deleted = gallery_views.grid(TEXT, [Stack("i", (shown_clip(deleted=1.0),))], "deleted")
    assert actions(deleted) == ["restore"] and "data-src" not in deleted
    assert "experimental" in gallery_views.grid(TEXT, [Stack("i", (shown_clip(),))])


def test_variations_are_one_stack_until_they_are_unfolded() -> None:
    favourite = shown_clip(id="b", favourite=True)
    group = Stack("g", (shown_clip(id="a"), favourite, shown_clip(id="c")))
    assert group.cover is favourite
    folded = Markup(gallery_views.grid(TEXT, [group]))
    cards = [attributes for tag, attributes in folded.tags if tag == "li"]
    assert [card["data-id"] for card in cards] == ["b"] and "3 variations" in folded.text
    assert {"compare", "unfold", "delete_all"} <= set(actions(gallery_views.grid(TEXT, [group])))
    unfolded = Markup(gallery_views.grid(TEXT, [group], unfolded=["g"]))
    assert [attributes["data-id"] for tag, attributes in unfolded.tags if tag == "li"] == ["a", "b", "c"]
    assert "2/3" in unfolded.text


def test_every_control_of_a_card_has_a_name() -> None:
    for language in ("en", "zh"):
        group = Stack("g", (shown_clip(NASTY), shown_clip(id="b")))
        markup = Markup(gallery_views.grid(Catalogue(language), [group, Stack("i", (shown_clip(),))]))
        for tag, attributes in markup.tags:
            if tag == "summary" or (tag == "button" and attributes.get("role") != "menuitem"):
                assert attributes.get("aria-label")

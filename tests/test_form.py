"""Words, views, the form and examples: what the page is made of, without a page."""

from __future__ import annotations

import ast
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from studio_server import form

from nava_core.conditioning.text import TokenCount
from nava_core.request import GenerationRequest, Guidance, ModelSpec, RequestError
from nava_core.speech import parse_speech
from rewriter.locking import lock
from rewriter.offline import compose_caption
from ui import views
from ui.catalogue import LANGUAGES, Catalogue, entries
from ui.differences import differences_view
from ui.examples import examples_for
from ui.hints import known_words, outside_hint
from ui.state import Form, form_values

ROOT = Path(__file__).parent.parent
TEXT = Catalogue("en")
SPEC = ModelSpec(
    "nava-nano", hint="Shapes: ball, star (圆球、星星).", negative_prompt="模糊", negative_prompt_audio="噪声"
)


def test_every_word_has_all_languages_and_the_same_placeholders() -> None:
    for key, words in entries().items():
        assert set(words) == set(LANGUAGES), key
        names = {
            language: {name for _, name, _, _ in string.Formatter().parse(text) if name}
            for language, text in words.items()
        }
        assert len({frozenset(found) for found in names.values()}) == 1, key


def test_the_catalogue_holds_what_the_code_asks_for_and_nothing_else() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ui").glob("*.py"))
    groups = {key.split(".")[0] for key in entries()}
    asked = {word for word in re.findall(r"""["']([a-z]+\.[a-z_]+)["']""", source) if word.split(".")[0] in groups}
    assert asked <= set(entries())
    computed = {key for key in entries() if re.search(rf"""f["']{key.split(".")[0]}\.\{{""", source)}
    assert asked | computed == set(entries())


def test_a_language_nobody_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="'fr'"):
        Catalogue("fr")


def test_the_page_never_touches_torch_nor_the_core_the_page() -> None:
    def imports(path: Path) -> set[str]:
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        return names

    for path in [ROOT / "app.py", *(ROOT / "ui").rglob("*.py")]:
        assert "torch" not in imports(path), path
    for path in (ROOT / "nava_core").rglob("*.py"):
        assert not imports(path) & {"gradio", "ui"}, path


class _Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@given(st.lists(st.sampled_from([*"ab~<>&\"'\n/SE=", "~~", "<script>", "</mark>", "<img onerror=x>"])).map("".join))
def test_nothing_typed_becomes_html(prompt: str) -> None:
    rewritten = prompt.replace("a", "c")
    found = _Tags(differences_view(TEXT, prompt, rewritten))
    assert found.tags <= {"p", "div", "section", "h3", "mark", "ins", "del"}
    words = found.words.replace("Your prompt", "", 1).replace("Rewritten", "", 1)
    assert words.removesuffix(TEXT("caption.anew")) == prompt + rewritten


def test_spoken_lines_are_counted_and_an_open_one_says_so() -> None:
    html = views.speech(TEXT, parse_speech("她说 ~~你好~~ 他说 ~~再见"), (3, 1))
    assert "Spoken lines: 2" in html and "no closing ~~" in html and 'data-colours="3,1"' in html
    assert "no closing" not in views.speech(TEXT, parse_speech("~~你好~~"))
    assert "No spoken lines" in views.speech(TEXT, parse_speech("雨"))
    assert views.colour(1) == views.colour(1 + views.SPAN_COLOURS) != views.colour(2)


@pytest.mark.parametrize(
    ("count", "kind"),
    [(TokenCount(10, 512), None), (TokenCount(600, 512), "warning"), (TokenCount(600, 512, (0,)), "error")],
)
def test_tokens_warn_before_the_text_is_cut(count: TokenCount, kind: str | None) -> None:
    html = views.tokens(TEXT, count)
    assert f"{count.used} of 512 tokens" in html
    assert (f'data-kind="{kind}"' in html) if kind else ("data-kind" not in html)


def test_the_recipe_shows_the_seed_and_escapes_the_prompt() -> None:
    recipe = GenerationRequest("<b>x</b>", seed=42).resolve(SPEC).to_recipe() | {"model": "nava-nano"}
    found = _Tags(views.recipe(TEXT, recipe))
    assert "42" in found.words and "<b>x</b>" in found.words and "b" not in found.tags


def test_the_form_becomes_a_request_and_a_request_the_form_again(tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    voice.write_bytes(b"RIFF")
    written = form()
    request = written.request(TEXT, (None, str(voice)))
    assert request.guidance == Guidance(1.0, 2.0, 3.0, 4.0, 5.0, align=False, timbre_apart=True)
    assert request.speakers == (None, str(voice))
    assert (request.width, request.height, request.seconds, request.seed) == (832, 480, 3.0, 5)
    again = form_values(request.resolve(SPEC), SPEC)
    assert Form(**again | {"random_seed": False, "variations": 1, "assignments": None}) == written


def test_a_random_seed_wins_over_the_one_shown_and_a_seed_in_words_is_refused() -> None:
    assert form(random_seed=True).request(TEXT).seed is None
    assert form(seed=" ").request(TEXT).seed is None
    with pytest.raises(RequestError, match="“two”") as caught:
        form(seed="two").request(TEXT)
    assert caught.value.field == "seed"


def test_more_voices_than_spoken_lines_name_both_counts() -> None:
    with pytest.raises(RequestError, match="3 voice references for 2 speech spans") as caught:
        form().request(TEXT, ("a", None, "c"))
    assert caught.value.field == "speakers"


def test_hints_follow_the_words_that_the_model_lists() -> None:
    assert known_words(SPEC.hint) == ("ball", "star", "圆球", "星星")
    assert outside_hint(TEXT, SPEC, "A red Ball falls") == outside_hint(TEXT, SPEC, "一个圆球") == ""
    assert SPEC.hint in outside_hint(TEXT, SPEC, "a cat in a ballroom")
    assert outside_hint(TEXT, SPEC, " ") == outside_hint(TEXT, ModelSpec("NAVA"), "a cat") == ""


def test_nanos_hint_knows_its_own_world_and_says_its_words() -> None:
    from training.lexicon import WORDS

    defaults = yaml.safe_load((ROOT / "training/configs/nano_defaults.yaml").read_text(encoding="utf-8"))
    spec = ModelSpec("nava-nano", hint=defaults["hint"])
    assert " ".join(WORDS) in spec.hint
    for inside in (
        "rain on a field",
        "海边",
        "a windy hill",
        "月夜",
        "a red ball rolls",
        "蓝色方块落下",
        "A woman says ~~hello~~",
        "左侧的男人说：~~yes~~",
    ):
        assert outside_hint(TEXT, spec, inside) == ""
    for outside in ("a city at night", "雨夜的街道", "a dog in the garden"):
        assert spec.hint in outside_hint(TEXT, spec, outside)


def test_examples_are_whole_and_inside_their_model() -> None:
    from training.captions import known_words as facts_named
    from training.lexicon import check_words

    for model in ("nava-nano", "another"):
        assert 3 <= len(examples_for(model)) <= 8
        for example in examples_for(model):
            assert set(example.titles) == set(LANGUAGES) and example.prompt
            if example.image:
                Image.open(example.image).verify()
            if model == "nava-nano":
                spans = parse_speech(example.prompt).spans
                assert all(check_words(span.text) for span in spans)
                if spans or "shape" not in facts_named(example.prompt):
                    assert compose_caption(lock(example.prompt))[0] == example.prompt
                else:
                    assert {"shape", "colour"} <= facts_named(example.prompt).keys()

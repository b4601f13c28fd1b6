from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nava_core.speech import CLOSING, OPENING, bind_speakers, parse_speech, read_jsonl_prompt

PIECES = [
    "~~",
    "~",
    "<S>",
    "<E>",
    "<extra_id_2>",
    "\n",
    "\r\n",
    "\u2028",
    " ",
    "Hello",
    "你好",
    "，",
    "<",
    ">",
    "&lt;S&gt;",
]
PROMPTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=16).map("".join))


def texts(prompt: str) -> list[str]:
    return [span.text for span in parse_speech(prompt).spans]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A quiet street.", []),
        ("", []),
        ("He says ~~Hello there~~ and leaves.", ["Hello there"]),
        ("~~Hi~~ then ~~Bye~~", ["Hi", "Bye"]),
        ("他说：<S>你好，世界！<E>她答：<S>嗯<E>", ["你好，世界！", "嗯"]),
        ("~~Hi~~ <S>Bye<E> ~~Again~~", ["Hi", "Bye", "Again"]),
        ("~~over\ntwo lines~~ end", ["over\ntwo lines"]),
        ("~~Hi~~ and ~~never closed\nThe end.", ["Hi", "never closed"]),
        ("<S>never closed\r\nThe end.", ["never closed"]),
        ("~~Hello~~Hi there", ["Hello"]),
        ("~~~~", [""]),
        ("so~~", [""]),
        ("~~~Hey~~~", ["~Hey"]),
        ("  ~~ spaces kept ~~", [" spaces kept "]),
        ("He says <E> here", []),
        ("~~a<E>b~~ c", ["a<E>b"]),
        ("<S>a ~~b~~ c<E>", ["a ~~b~~ c"]),
        ("<S>open, <S>closed<E>", ["open, ", "closed"]),
        ("~~forgot to close\nThen <S>Hi<E> and\n~~Bye~~", ["forgot to close", "Hi", "Bye"]),
        ("~~<S>both marks<E>~~ end", ["both marks"]),
        ("~~a~~<S>b<E>", ["a", "b"]),
        ("<S><extra_id_2>Hello<E>", ["Hello"]),
        ("~~<extra_id_2>Hello~~", ["Hello"]),
        ("<S> <extra_id_2><extra_id_2>Hello<E>", ["Hello"]),
        ("<S>Hello <extra_id_2> you<E>", ["Hello <extra_id_2> you"]),
        ("<extra_id_2> stray ~~Hi~~", ["Hi"]),
        ("好呀～～再见～～", []),
    ],
)
def test_reading(prompt: str, expected: list[str]) -> None:
    assert texts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "model_text"),
    [
        ("A ~~Hi~~ B", "A <S><extra_id_2>Hi<E> B"),
        ("A <S>Hi<E> B", "A <S><extra_id_2>Hi<E> B"),
        ("A <S><extra_id_2>Hi<E> B", "A <S><extra_id_2>Hi<E> B"),
        ("A ~~Hi\nB", "A <S><extra_id_2>Hi<E>\nB"),
        ("<extra_id_2> A ~~Hi~~", "<extra_id_2> A <S><extra_id_2>Hi<E>"),
        ("stray <E> ~~Hi~~", "stray <E> <S><extra_id_2>Hi<E>"),
    ],
)
def test_model_text(prompt: str, model_text: str) -> None:
    assert parse_speech(prompt).model_text == model_text


def test_closed_says_which_spans_were_closed_by_their_mark() -> None:
    assert [span.closed for span in parse_speech("~~a~~ <S>b<E> ~~<S>c<E>~~ <S>d <S>e<E> ~~f").spans] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


@settings(max_examples=400)
@given(PROMPTS)
@example("~~a <S><extra_id_2>b<E> c~~")
@example("<S><extra_id_2><S><extra_id_2>")
@example("<~~S><extra_id_2>")
def test_every_text_has_a_reading(text: str) -> None:
    prompt = parse_speech(text)
    assert prompt.source == text
    position = 0
    for span in prompt.spans:
        assert position <= span.mark_start < span.start <= span.end <= span.mark_end <= len(text)
        assert text[span.start : span.end] == span.text
        assert (span.mark_end > span.end) == span.closed
        position = span.mark_end
    assert prompt.model_text.count(OPENING) == prompt.model_text.count("<S>") == len(prompt.spans)
    inserted = [OPENING + span.text + CLOSING for span in prompt.spans]
    remainder = prompt.model_text
    for piece in inserted:
        before, found, remainder = remainder.partition(piece)
        assert found and before in text


@settings(max_examples=200)
@given(PROMPTS.filter(lambda text: "<E>" not in text))
def test_the_models_text_reads_the_same(text: str) -> None:
    prompt = parse_speech(text)
    assert texts(prompt.model_text) == [span.text for span in prompt.spans]
    assert parse_speech(prompt.model_text).model_text == prompt.model_text


@settings(max_examples=200)
@given(st.lists(st.text(alphabet=st.characters(exclude_characters="~<>"), max_size=8), min_size=1, max_size=5))
def test_pairs_carry_their_letters(lines: list[str]) -> None:
    assert texts(" 说 ".join(f"~~{line}~~" for line in lines)) == lines
    assert texts(" 说 ".join(f"<S>{line}<E>" for line in lines)) == lines


def test_binding_keeps_places() -> None:
    spans = parse_speech("~~a~~ ~~b~~ ~~c~~").spans
    assert bind_speakers(spans, []) == (None, None, None)
    assert bind_speakers(spans, ["x.wav"]) == ("x.wav", None, None)
    assert bind_speakers(spans, [None, "y.wav"]) == (None, "y.wav", None)
    assert bind_speakers(spans, ["x.wav", "", "x.wav"]) == ("x.wav", None, "x.wav")
    assert bind_speakers(spans[:1], ["x.wav", None, ""]) == ("x.wav",)


@pytest.mark.parametrize("references", [["a.wav", "b.wav"], [None, "b.wav"]])
def test_more_references_than_spans_names_both_counts(references: list[str | None]) -> None:
    with pytest.raises(ValueError, match=r"2 voice references for 1 speech span\b") as failure:
        bind_speakers(parse_speech("~~a~~").spans, references)
    assert getattr(failure.value, "field", None) == "speakers"


@pytest.mark.parametrize(
    ("text", "references", "lines"),
    [
        ("~~Hello~~Hi there", 2, ["Hello", "Hi there"]),
        ("Two people. ~~Hello\nShe smiles. ~~Hi~~", 3, None),
        ("Two people. ~~Hello\nShe smiles. ~~Hi\nThey part.", 2, ["Hello", "Hi"]),
        ("~~a~~b~~c", 3, ["a", "b", "c"]),
        ("~~Hello~~Hi there", 1, None),
        ("~~Hello~~ ~~Hi~~", 2, None),
        ("~~Hello~~", 2, None),
        ("~~Hello~~ \nShe leaves.", 2, None),
        ("~~Hello~~Hi~\n", 2, None),
        ("no marks", 0, None),
        ("<S>a<E> ~~b~~c", 2, None),
    ],
)
def test_jsonl_reading(text: str, references: int, lines: list[str] | None) -> None:
    reading, note = read_jsonl_prompt(text, references)
    if lines is None:
        assert (reading, note) == (text, None)
    else:
        prompt = parse_speech(reading)
        assert [span.text for span in prompt.spans] == lines
        assert all(span.closed for span in prompt.spans)
        assert note is not None
        assert all(line in note for line in lines)


@settings(max_examples=200)
@given(PROMPTS, st.integers(0, 5))
def test_jsonl_reading_never_loses_a_letter(text: str, references: int) -> None:
    reading, note = read_jsonl_prompt(text, references)
    assert reading.replace("~", "") == text.replace("~", "")
    if note is not None:
        assert len(parse_speech(reading).spans) == references

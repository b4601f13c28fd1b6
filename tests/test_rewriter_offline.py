"""The offline composer: nava-nano's world understood, its caption family kept, other prompts left in their words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composed import FirstWording, assert_understood, caption_of
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_core.speech import parse_speech
from rewriter import make_rewriter
from rewriter.checks import find_faults, plain_paragraph, strip_thinking
from rewriter.locking import lock
from rewriter.offline import composer
from rewriter.offline.composer import FACTS, compose_caption, understand
from training import captions, world
from training.captions_people import shot_caption
from training.shots import sample_shot

LEXICON = json.loads((Path(composer.__file__).with_name("lexicon.json")).read_text(encoding="utf-8"))


def colours_beside_backgrounds(colour: str) -> set[str]:
    """Phrases of backgrounds that mean `colour` where they tell of a thing."""
    return {phrase for phrase, meaning in LEXICON["colour_of_things"].items() if meaning == colour}


def test_the_lexicon_has_all_words_of_training() -> None:
    for fact, values in captions.WORDS.items():
        for value, names in values.items():
            for language in ("zh", "en"):
                # "navy" is a background's too: it stands there, and in `colour_of_things`.
                missing = set(names[language]) - set(LEXICON["facts"][fact][value][language])
                assert missing <= colours_beside_backgrounds(value), f"{fact} {value}: {missing}"
            assert LEXICON["facts"][fact][value]["zh"][0] == names["zh"][0]
    assert set(LEXICON["defaults"]) == set(captions.WORDS)


def test_no_phrase_has_two_meanings() -> None:
    found: dict[str, tuple[str, str]] = {}
    for fact, values in LEXICON["facts"].items():
        for value, names in values.items():
            for phrase in (*names["zh"], *names["en"]):
                assert found.setdefault(phrase, (fact, value)) == (fact, value), phrase


@pytest.mark.parametrize("colour", world.ALL_COLOURS)
def test_every_phrase_of_every_colour_is_understood(colour: str) -> None:
    names = LEXICON["facts"]["colour"][colour]
    for phrase in {*names["zh"], *names["en"]} | colours_beside_backgrounds(colour):
        english = phrase.isascii()
        reading = understand(f"a large {phrase} cube on the left falls" if english else f"左边一个大的{phrase}方块落下")
        expected = {"size": ["large"], "colour": [colour], "shape": ["cube"], "column": ["left"]}
        assert reading.facts == expected and reading.is_scene and not reading.unknown, phrase
    for phrase in colours_beside_backgrounds(colour):
        reading = understand(f"a ball, {phrase} wall" if phrase.isascii() else f"圆球，{phrase}的墙面")
        assert list(reading.facts) == ["shape", "background"], phrase


def test_every_caption_is_one_that_training_writes() -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for index in range(400):
        scene = world.sample_scene(rng, "all")
        if index % 2:
            scene = replace(scene, **world.sample_shade(rng))
        facts = {fact: getattr(scene, fact) for fact in FACTS}
        usual = LEXICON["usual_contacts"][scene.shape][scene.drop]
        plain = {fact: captions.WORDS[fact][value]["zh"][0] for fact, value in facts.items()}
        prompt = "，".join(
            f"{plain[fact]}背景" if fact == "background" else plain[fact] for fact in ("background", *FACTS[:6])
        )
        prompt += f"，{world.contacts(scene)[0].time:.1f}秒时落地"
        if len(world.contacts(scene)) == usual:
            assert caption_of(prompt) == captions.caption(scene, FirstWording(), "dense")  # type: ignore[arg-type]
            checked += 1
    assert checked > 300  # how often a shape usually bounces is right for most scenes


def test_all_training_captions_are_understood() -> None:
    rng = np.random.default_rng(1)
    for index in range(600):
        scene = world.sample_scene(rng, "all")
        if index % 2:
            scene = replace(scene, **world.sample_shade(rng))
        text = captions.caption(scene, rng, ("dense", "short", "english")[index % 3])
        reading = understand(text)
        assert reading.is_scene, text
        assert reading.moment in (None, float(f"{world.contacts(scene)[0].time:.1f}"))
        for fact, values in reading.facts.items():
            assert values == [str(len(world.contacts(scene))) if fact == "contacts" else getattr(scene, fact)], text


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red ball falls", ["大红色圆球", "画面中央的高处", "深夜蓝色"]),
        ("Tiny golden stars drop low on the left!", ["小黄色星星", "画面左侧的低处", "砸到地面后停住"]),
        ("小红球从左边掉下来", ["小红色圆球", "画面左侧"]),
        ("一个蓝色的盒子 falls on the right, beige wall", ["大蓝色方块", "画面右侧", "暖米色"]),
        ("A huge wooden crate, crimson, hangs high up. It falls after a long pause.", ["大红色方块", "很久之后"]),
        ("a dark blue ball", ["大藏青色圆球", "深夜蓝色"]),
        ("a cyan ball falls", ["大青色圆球"]),
        ("一颗粉色的星星落下", ["大粉色星星"]),
        ("小粉球掉下来", ["小粉色圆球"]),
        ("a navy cube on the left", ["大藏青色方块", "画面左侧", "深夜蓝色的墙面"]),
        ("a brown ball, beige wall", ["大褐色圆球", "暖米色的墙面"]),
        ("olive green triangle, olive background", ["大橄榄色三角", "灰绿色的墙面"]),
        ("a sky blue star", ["大蓝色星星"]),
        ("天青色的方块，深蓝色背景", ["大天青色方块", "深夜蓝色的墙面"]),
        ("a gold star falls", ["大黄色星星"]),
        ("green triangle against a dark blue background", ["绿色三角", "深夜蓝色"]),
        ("WHITE CUBE, GREY BACKGROUND, bounces twice", ["白色方块", "灰绿色", "弹起两次"]),
        ("something purple falls", ["紫色圆球"]),
        ("星星", ["大红色星星"]),
    ],
)
def test_nanos_world_is_understood(prompt: str, parts: list[str]) -> None:
    assert_understood(prompt, parts)


@pytest.mark.parametrize(
    "prompt",
    [
        "A dog runs on the beach",
        "Two red balls fall",
        "three big red balls fall on the left",
        "2个大红球从左边落下",
        "a big red ball high on the left never falls",
        "一个大红色的球悬在左边高处，没有落下",
        "a red ball and a blue cube",
        "a black ball",
        "a cyan and amber ball",
        "A man in a red box car drives to the left",
        "雨夜的街道，一位女子撑着红伞走过",
        "It falls",
        "left, right",
    ],
)
def test_other_prompts_keep_their_words(prompt: str) -> None:
    caption, notes = compose_caption(lock(prompt))
    assert caption.startswith(prompt)
    assert "镜头" in caption
    assert "没有人说话" in caption
    assert notes == (composer.NOTE_WORDS,)


@pytest.mark.parametrize(
    ("prompt", "landing"),
    [
        ("a red ball falls", "立刻松开，直直落下，约0.5秒时撞"),
        ("a red ball falls low on the left, a little later", "稍后松开，直直落下，约0.7秒时撞"),
        ("a red ball falls and lands at 1.2 seconds", "很久之后松开，直直落下，约1.2秒时撞"),
        ("红球，大约0.9秒落地", "稍后松开，直直落下，约0.9秒时撞"),
        ("a red ball falls at once, at 1 s", "立刻松开，直直落下，约1.0秒时撞"),
        ("a large red ball falls in the middle, a 2 second clip", "立刻松开，直直落下，约0.5秒时撞"),
    ],
)
def test_the_caption_says_when_the_shape_lands(prompt: str, landing: str) -> None:
    assert landing in caption_of(prompt)


def test_what_was_chosen_and_left_out_is_told() -> None:
    _, notes = compose_caption(lock("a shiny red ball falls down from high up on the left at once"))
    assert notes[1:] == (
        "chosen for you: size large, background night blue, landing at 0.5 s",
        "left out, since the lexicon does not know them: shiny",
    )


@pytest.mark.parametrize("style", ["dense", "short", "english"])
def test_views_of_training_are_understood(style: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        shot = sample_shot(rng, "view", "all")
        caption = shot_caption(shot, rng, style)
        plain = shot_caption(shot, FirstWording(), "dense")  # type: ignore[arg-type]
        assert caption_of(caption) == plain, caption


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("rain on a field, slow push in", ["下着雨的原野，雨声", "镜头缓缓推近"]),
        ("夜晚的星空，镜头缓缓推近", ["月光下的夜晚，虫鸣", "镜头缓缓推近"]),
        ("a windy hill, camera pans to the right", ["大风吹过的草地，风声", "镜头向右平移"]),
        ("海边", ["海浪翻涌的海边", "固定机位"]),
        ("A red ball falls and bounces, the camera pulls out", ["红色圆球", "弹起", "镜头缓缓拉远"]),
    ],
)
def test_places_and_cameras_are_understood(prompt: str, parts: list[str]) -> None:
    assert_understood(prompt, parts)


@pytest.mark.parametrize("prompt", ["A blue cube drops in the rain", "the sea, camera pans left, camera pans right"])
def test_what_the_world_does_not_have_keeps_its_words(prompt: str) -> None:
    assert caption_of(prompt).startswith(prompt)


def test_camera_and_sound_are_added_only_where_the_prompt_has_none() -> None:
    assert caption_of("Close-up of a cat. Soft music.") == "Close-up of a cat. Soft music."
    assert "机位" not in caption_of("航拍一座城市")
    assert "机位" not in caption_of("A slow camera move")
    assert "机位" in caption_of("他望向镜头")
    assert "机位" in caption_of("He looks into the camera")
    assert "雨声" in caption_of("rain on a roof")
    assert "train" in caption_of("a train") and "雨声" not in caption_of("a train")


@pytest.mark.parametrize(
    ("prompt", "added", "absent"),
    [
        ("老人坐在火车上看书", "列车行驶的隆隆声", "柴火"),
        ("浪漫的晚餐，写实风格", "与场景相符的环境声", "风声"),
        ("She waves at the camera", "机位稳定", "海浪"),
        ("A tourist holding a camera smiles", "机位稳定", "人声"),
        ("女孩站在镜头前，雪中景色", "机位稳定", "人声"),
        ("她轻声说：~~你好~~", "口型与话语同步", "没有人说话"),
        ("旁白说：~~很久以前~~", "画外的声音", "口型"),
        ("Two friends talk in a park", "人声自然", "没有人说话"),
        ("老人在看小说", "没有人说话", "人声"),
    ],
)
def test_sentences_fit_what_the_prompt_says(prompt: str, added: str, absent: str) -> None:
    caption = caption_of(prompt)
    assert added in caption and absent not in caption


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("~~Hello!~~", "画面中的人物说：~~Hello!~~。镜头"),
        ("She says ~~Hi", "She says ~~Hi~~。镜头"),
        ("男人说：~~走吧~~\n女人点头", "男人说：~~走吧~~ 女人点头。镜头"),
        ("a red ball falls, a voice says ~~Look!~~ and ~~Again!~~", "简洁的二维动画"),
    ],
)
def test_speech_stays(prompt: str, start: str) -> None:
    caption = caption_of(prompt)
    assert caption.startswith(start)
    assert [span.text for span in parse_speech(caption).spans] == [span.text for span in parse_speech(prompt).spans]
    assert "没有人说话" not in caption


@given(st.text(min_size=1).filter(str.strip))
@settings(max_examples=300)
def test_the_same_prompt_gives_the_same_caption(prompt: str) -> None:
    rewriter = make_rewriter("offline")
    first, second = (compose_caption(lock(prompt)) for _ in range(2))
    assert first == second
    assert rewriter.backend == "offline"


def test_the_offline_backend_is_labelled() -> None:
    rewriter = make_rewriter("offline")
    result = rewriter.rewrite_blocking("a red ball")
    assert (result.backend, result.outcome, result.attempts) == ("offline", "composed", 0)
    assert "no language model" in rewriter.label
    assert "without a language model" in result.notes[0]
    assert str(rewriter.counts).startswith("1 captions: 0 as is (0%)")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(prompt: str) -> None:
    with pytest.raises(ValueError, match="the prompt is empty; describe a scene"):
        make_rewriter("offline").rewrite_blocking(prompt)


def test_unknown_backends_and_numbers() -> None:
    with pytest.raises(ValueError, match="backend is 'gpt'; it must be one of auto, vllm, transformers, offline"):
        make_rewriter("gpt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attempts is 0"):
        make_rewriter("offline", attempts=0)
    with pytest.raises(ValueError, match="concurrency is 0"):
        make_rewriter("vllm", concurrency=0)


@pytest.mark.parametrize(
    ("reply", "opened", "caption"),
    [
        ("段落", False, "段落"),
        ("<think>想</think>\n段落", False, "段落"),
        ("想</think>段落", True, "段落"),
        ("想</think>段落", False, "段落"),
        ("<think>没想完", False, ""),
        ("没想完", True, ""),
        ("<think>一</think>草稿<think>二</think>段落", False, "段落"),
        ("<think>一</think>段落<think>没完", False, "段落"),
        ("<THINKING>一</Thinking>段落", False, "段落"),
    ],
)
def test_thinking_is_stripped(reply: str, opened: bool, caption: str) -> None:
    assert strip_thinking(reply, opened) == caption


@pytest.mark.parametrize(
    ("reply", "paragraph"),
    [
        ("一个段落。", "一个段落。"),
        ("改写后的描述：一个段落。", "一个段落。"),
        ("**描述：** 一个段落。", "一个段落。"),
        ("好的，以下是改写：\n\n一个段落。", "一个段落。"),
        ("```\n一个段落。\n```", "一个段落。"),
        ("# 标题\n一个段落。\n---\n注：说明", "一个段落。"),
        ("一个段落。\n\n希望您满意！", "一个段落。"),
        ("一个段落。\n\n说明：他说【台词1】", "一个段落。\n说明：他说【台词1】"),
        ("“一个段落。”", "一个段落。"),
        ("“甲”和“乙”", "“甲”和“乙”"),
        ("```一个段落，他说：【台词1】。```", "一个段落，他说：【台词1】。"),
        ("```text\n一个段落。\n```", "一个段落。"),
        ("一、风格写实。\n（二）主体是猫。", "风格写实。\n主体是猫。"),
        ("二、三个人走来。", "二、三个人走来。"),
        ("这是一间咖啡馆。\n女子坐下。", "这是一间咖啡馆。\n女子坐下。"),
    ],
)
def test_only_the_paragraph_is_kept(reply: str, paragraph: str) -> None:
    text, changed = plain_paragraph(reply)
    assert text == paragraph
    assert changed == (reply != paragraph)


def test_what_is_wrong_with_a_caption() -> None:
    good = "一间安静的咖啡馆，阳光照在木桌上。" * 15
    assert find_faults(good, "café") == []
    assert [fault.what for fault in find_faults("", "café")] == ["empty"]
    assert find_faults("An English caption. " * 20, "café")[0].what == "not Chinese"
    assert [fault.hard for fault in find_faults(good[:100], "café")] == [False]
    assert [fault.hard for fault in find_faults(good * 2, "café")] == [False]
    assert [fault.hard for fault in find_faults(good * 3, "café")] == [True]
    assert find_faults(good * 3, good * 3) == []  # a long prompt may stay long
    listed = "画面风格：写实。主体：一只猫。环境与光线：午后的窗台。镜头：近景。" + good
    assert [(fault.what, fault.hard) for fault in find_faults(listed, "a cat")] == [("headings", False)]
    assert find_faults("镜头：近景，固定。" + good, "a cat") == []
    assert "leftovers" in find_faults(good + "保留占位符。", "café")[0].what
    assert find_faults(good + "墙上写着占位符。", "墙上写着占位符") == []

"""What a shot of people, cameras and ambiences is called: dense Chinese captions, short Chinese ones and English ones.

Spoken words stand between `<S>` and `<E>`, as a prompt's do.
"""

from __future__ import annotations

import numpy as np

from training import captions
from training.captions import CAMERAS_ZH, MOMENTS_ZH, SIDES_ZH, STYLES_ZH, Wordings, article, pick
from training.captions_roll import WALLS, roll_caption
from training.people import Person
from training.shots import Shot, speakers
from training.world import COLOURS

# The first wording of each is the one to show to people.
WORDS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "sex": {
        "f": {"zh": ("女人", "女子", "女士", "女孩"), "en": ("woman", "lady", "girl")},
        "m": {"zh": ("男人", "男子", "男士", "男孩"), "en": ("man", "guy", "boy")},
    },
    "hair": {
        "black": {"zh": ("黑色", "乌黑", "黑"), "en": ("black",)},
        "brown": {"zh": ("棕色", "棕褐色", "棕"), "en": ("brown",)},
        "blond": {"zh": ("金色", "浅金色", "金"), "en": ("blond", "blonde", "fair")},
        "grey": {"zh": ("灰色", "银灰色", "灰"), "en": ("grey", "gray")},
        "ginger": {"zh": ("姜红色", "红棕色", "姜黄色"), "en": ("ginger", "auburn")},
    },
    "hair_style": {
        "short": {"zh": ("短发", "利落的短发"), "en": ("short",)},
        "long": {"zh": ("长发", "披肩长发"), "en": ("long",)},
        "curly": {"zh": ("卷发", "蓬松的卷发"), "en": ("curly",)},
    },
    "skin": {
        "light": {"zh": ("白皙", "浅色"), "en": ("light", "pale")},
        "tan": {"zh": ("小麦色", "浅棕色"), "en": ("tan", "tanned")},
        "dark": {"zh": ("深色", "黝黑"), "en": ("dark",)},
    },
    "clothes": {colour: captions.WORDS["colour"][colour] for colour in COLOURS},
    "column": captions.WORDS["column"],
    "backdrop": {
        **WALLS,
        "rain": {"zh": ("下着雨的原野", "雨中的田野", "阴雨天的旷野"), "en": ("the rain", "a rainy field")},
        "waves": {"zh": ("海浪翻涌的海边", "有海浪的沙滩", "波浪起伏的大海"), "en": ("a sea with waves", "a wavy sea")},
        "wind": {"zh": ("大风吹过的草地", "刮着风的山坡", "风中的草坡"), "en": ("a windy hill", "a windy meadow")},
        "night": {"zh": ("月光下的夜晚", "有星星的夜空", "宁静的月夜"), "en": ("a starry night", "a moonlit night")},
    },
    "camera": {
        "still": {"zh": CAMERAS_ZH, "en": ("fixed camera", "the camera does not move")},
        "pan left": {
            "zh": ("镜头向左平移", "镜头缓缓左移", "摄像机向左摇"),
            "en": ("the camera pans left", "camera pan left"),
        },
        "pan right": {
            "zh": ("镜头向右平移", "镜头缓缓右移", "摄像机向右摇"),
            "en": ("the camera pans right", "camera pan right"),
        },
        "push in": {
            "zh": ("镜头缓缓推近", "镜头向前推进", "摄像机慢慢推近"),
            "en": ("the camera pushes in", "slow push in"),
        },
        "pull out": {
            "zh": ("镜头缓缓拉远", "镜头向后拉开", "摄像机慢慢拉远"),
            "en": ("the camera pulls out", "slow pull out"),
        },
    },
}  # fmt: skip
AMBIENT_SOUNDS: dict[str, dict[str, tuple[str, ...]]] = {
    "rain": {"zh": ("雨声淅淅沥沥", "雨点声不断", "雨声沙沙"), "en": ("the sound of rain", "rain patters")},
    "waves": {"zh": ("海浪声起伏", "浪花拍岸声", "海浪哗哗作响"), "en": ("the sound of waves", "waves break")},
    "wind": {"zh": ("风声呼呼", "风声阵阵", "风呼啸而过"), "en": ("the sound of wind", "wind blows")},
    "night": {"zh": ("虫鸣阵阵", "蟋蟀声声", "夜里虫声唧唧"), "en": ("crickets chirp", "the sound of crickets")},
}
BACKDROPS_ZH = ("背景是{}", "身后是{}", "场景是{}")
WALLS_ZH = ("{}的墙面", "{}墙壁", "{}背景")
PERSON_ZH = (
    "一个皮肤{skin}、留着{hair}{hair_style}、穿{clothes}上衣的{sex}",
    "一位{hair}{hair_style}的{sex}，皮肤{skin}，穿着{clothes}的衣服",
    "一个{sex}，皮肤{skin}，{hair}{hair_style}，身穿{clothes}上衣",
)
# The place comes first, so that a look belongs to the last place named before it: a text encoder of two layers did not
# learn to tell two people apart whose places were named now before them and now after.
PLACES_ZH = ("画面{column}是{person}", "画面{column}站着{person}", "在画面{column}的是{person}")
SPEAKING_ZH = ("看着镜头说：{}", "开口说：{}", "对着镜头说道：{}", "张嘴说：{}")
VOICES_ZH: Wordings = {"f": ("女声", "女性的嗓音", "女人的声音"), "m": ("男声", "男性的嗓音", "男人的声音")}
SOUNDING_ZH = ("{voice}从{side}传来", "声音是{side}的{voice}", "{side}传来{voice}")
PRONOUNS_ZH: Wordings = {"f": ("她", "她"), "m": ("他", "他")}

STYLE_SHARES = captions.STYLE_SHARES
# How many dense captions of people say when they begin to speak.
MOMENT_SHARE = 0.6


def shot_caption(shot: Shot, rng: np.random.Generator, style: str | None = None, moment: bool | None = None) -> str:
    """Words for `shot`, in one of the styles of `training.captions`; style None draws one by STYLE_SHARES.

    moment: whether a dense caption says when shapes land and people begin to speak; None draws it.
    """
    if style is None:
        style = str(rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values())))
    if shot.kind == "fall" and shot.scene is not None:
        return captions.caption(shot.scene, rng, style, moment)
    if shot.roll is not None:
        return roll_caption(shot.roll, shot.backdrop, rng, style, moment)
    grammars = {"dense": _dense, "short": _short, "english": _english}
    if style not in grammars:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(grammars)}")
    named = bool(rng.random() < MOMENT_SHARE) if moment is None else moment
    return grammars[style](shot, rng, named)


def _word(rng: np.random.Generator, fact: str, value: str, language: str) -> str:
    names = WORDS[fact][value][language]
    return names[0] if rng.random() < 0.4 else pick(rng, names)


def _facts(person: Person, rng: np.random.Generator, language: str) -> dict[str, str]:
    return {
        fact: _word(rng, fact, getattr(person, fact), language)
        for fact in ("sex", "hair", "hair_style", "skin", "clothes", "column")
    }


def _speech(person: Person) -> str:
    return f"<S>{' '.join(person.words)}<E>"


def _in_turn(shot: Shot) -> list[Person]:
    """Those who speak, in order, then the silent ones."""
    order = speakers(shot)
    return [shot.people[number] for number in [*order, *(set(range(len(shot.people))) - set(order))]]


def _dense(shot: Shot, rng: np.random.Generator, moment: bool) -> str:
    backdrop = _word(rng, "backdrop", shot.backdrop, "zh")
    if not shot.ambience:
        backdrop = pick(rng, WALLS_ZH).format(backdrop)
    parts = [pick(rng, BACKDROPS_ZH).format(backdrop)]
    if shot.scene is not None:
        action = _falling(shot, rng, moment)
    elif shot.people:
        action = "".join(_introduction(person, rng) for person in shot.people) + _talk(shot, rng, moment)
    else:
        action = ""
    if shot.ambience:
        parts.append(pick(rng, AMBIENT_SOUNDS[shot.ambience]["zh"]))
    setting = "，".join(parts) + "。"
    camera, style = _word(rng, "camera", shot.camera, "zh"), pick(rng, STYLES_ZH)
    return pick(rng, (
        f"{style}。{setting}{action}{camera}。",
        f"{setting}{action}{camera}。",
        f"{camera}。{setting}{action}",
        f"{style}，{camera}。{setting}{action}",
        f"{action}{setting}{style}，{camera}。",
        f"{camera}，{style}。{action}{setting}",
    ))  # fmt: skip


def _introduction(person: Person, rng: np.random.Generator) -> str:
    facts = _facts(person, rng, "zh")
    described = pick(rng, PERSON_ZH).format(**facts)
    return pick(rng, PLACES_ZH).format(person=described, column=facts["column"]) + "。"


def _talk(shot: Shot, rng: np.random.Generator, moment: bool) -> str:
    """Who says what, in order, and where each voice comes from."""
    sentences = []
    for person in _in_turn(shot):
        if not person.words:
            continue
        who = f"{_word(rng, 'column', person.column, 'zh')}的{_word(rng, 'sex', person.sex, 'zh')}"
        if len(shot.people) == 1:
            who = pick(rng, PRONOUNS_ZH[person.sex])
        when = pick(rng, MOMENTS_ZH).format(f"{person.start:.1f}") if moment else ""
        said = pick(rng, SPEAKING_ZH).format(_speech(person))
        voice = pick(rng, VOICES_ZH[person.sex])
        sounding = pick(rng, SOUNDING_ZH).format(voice=voice, side=pick(rng, SIDES_ZH[person.column]))
        sentences.append(f"{who}{when}{said}，{sounding}。")
    return "".join(sentences)


def _falling(shot: Shot, rng: np.random.Generator, moment: bool) -> str:
    """The falling part of stage 1's dense caption."""
    assert shot.scene is not None
    return captions.falling_action(shot.scene, rng, moment)


def _short(shot: Shot, rng: np.random.Generator, moment: bool) -> str:
    parts = []
    if shot.scene is not None:
        parts.append(captions.caption(shot.scene, rng, "short", setting=False).rstrip("。"))
    for person in _in_turn(shot):
        facts = _facts(person, rng, "zh")
        place = f"{facts['column']}的" if len(shot.people) > 1 or rng.random() < 0.4 else ""
        hair = f"{facts['hair']}{facts['hair_style']}" if rng.random() < 0.5 else ""
        clothes = f"穿{facts['clothes']}衣服" if rng.random() < 0.5 else ""
        looks = hair + ("、" if hair and clothes else "") + clothes
        said = f"{pick(rng, ('说', '说：', '说道：'))}{_speech(person)}" if person.words else "不说话"
        parts.append(f"{place}{looks}{'的' if looks else ''}{facts['sex']}{said}")
    if shot.ambience:
        parts.append(_word(rng, "backdrop", shot.backdrop, "zh"))
    elif rng.random() < 0.3:
        parts.append(f"{_word(rng, 'backdrop', shot.backdrop, 'zh')}背景")
    if shot.camera != "still":
        parts.append(_word(rng, "camera", shot.camera, "zh"))
    return "，".join(parts) + pick(rng, ("", "。"))


def _english(shot: Shot, rng: np.random.Generator, moment: bool) -> str:
    sentences = []
    if shot.scene is not None:
        sentences.append(captions.caption(shot.scene, rng, "english", moment, setting=False).rstrip("."))
    for person in _in_turn(shot):
        facts = _facts(person, rng, "en")
        skin = f"{facts['skin']}-skinned " if rng.random() < 0.4 else ""
        hair = f" with {facts['hair_style']} {facts['hair']} hair" if rng.random() < 0.7 else ""
        clothes = f" in {article(facts['clothes'])} {facts['clothes']} shirt" if rng.random() < 0.7 else ""
        place = f"{facts['column']} " if len(shot.people) > 1 or rng.random() < 0.5 else ""
        said = f"{pick(rng, ('says', 'says:', 'is talking:'))} {_speech(person)}" if person.words else "is silent"
        when = f" at {person.start:.1f} s" if moment and person.words and rng.random() < 0.5 else ""
        sentences.append(_capital(f"{place}a {skin}{facts['sex']}{hair}{clothes} {said}{when}"))
    backdrop = _word(rng, "backdrop", shot.backdrop, "en")
    if shot.ambience:
        sentences.append(f"The scene is {backdrop}, {pick(rng, AMBIENT_SOUNDS[shot.ambience]['en'])}")
    elif rng.random() < 0.5:
        sentences.append(f"The background is {backdrop}")
    if shot.camera != "still" or rng.random() < 0.3:
        sentences.append(_capital(_word(rng, "camera", shot.camera, "en")))
    return ". ".join(sentences) + pick(rng, ("", "."))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

"""What a scene of the nano world is called: dense Chinese captions, short Chinese ones and English ones.

The words are data (`WORDS`), each fact with several wordings; the grammars below join them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from training.world import Scene, contacts

Wordings = Mapping[str, Sequence[str]]

# The first wording of each is the one to show to people.
WORDS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "shape": {
        "ball": {"zh": ("圆球", "球", "球体", "皮球"), "en": ("ball", "sphere", "rubber ball")},
        "cube": {"zh": ("方块", "木块", "立方体", "正方体"), "en": ("cube", "block", "box", "square")},
        "triangle": {"zh": ("三角", "三角形", "三角块"), "en": ("triangle", "metal triangle")},
        "star": {"zh": ("星星", "五角星", "星形"), "en": ("star", "five-pointed star", "glass star")},
    },
    "colour": {
        "red": {"zh": ("红色", "鲜红色", "正红色", "红"), "en": ("red", "bright red")},
        "orange": {"zh": ("橙色", "橘色", "橘橙色", "橙"), "en": ("orange", "bright orange")},
        "yellow": {"zh": ("黄色", "明黄色", "金黄色", "黄"), "en": ("yellow", "golden yellow")},
        "green": {"zh": ("绿色", "翠绿色", "草绿色", "绿"), "en": ("green", "bright green")},
        "blue": {"zh": ("蓝色", "湛蓝色", "宝蓝色", "蓝"), "en": ("blue", "bright blue")},
        "purple": {"zh": ("紫色", "亮紫色", "紫罗兰色", "紫"), "en": ("purple", "violet")},
        "white": {"zh": ("白色", "雪白色", "纯白色", "白"), "en": ("white", "snow white")},
        "cyan": {"zh": ("青色",), "en": ("cyan",)},
        "navy": {"zh": ("藏青色",), "en": ("navy",)},
        "indigo": {"zh": ("靛色",), "en": ("indigo",)},
        "azure": {"zh": ("天青色",), "en": ("azure",)},
        "teal": {"zh": ("水鸭色",), "en": ("teal",)},
        "mint": {"zh": ("薄荷色",), "en": ("mint",)},
        "lime": {"zh": ("青柠色",), "en": ("lime",)},
        "olive": {"zh": ("橄榄色",), "en": ("olive",)},
        "moss": {"zh": ("苔藓色",), "en": ("moss",)},
        "maroon": {"zh": ("栗色",), "en": ("maroon",)},
        "magenta": {"zh": ("玫瑰色",), "en": ("magenta",)},
        "pink": {"zh": ("粉色",), "en": ("pink",)},
        "coral": {"zh": ("珊瑚色",), "en": ("coral",)},
        "amber": {"zh": ("琥珀色",), "en": ("amber",)},
        "brown": {"zh": ("褐色",), "en": ("brown",)},
        "cream": {"zh": ("奶油色",), "en": ("cream",)},
        "silver": {"zh": ("银色",), "en": ("silver",)},
        "lavender": {"zh": ("薰衣草色",), "en": ("lavender",)},
    },
    "size": {
        "small": {"zh": ("小", "小号", "小小的", "个头较小的"), "en": ("small", "little", "tiny")},
        "large": {"zh": ("大", "大号", "大大的", "个头较大的"), "en": ("large", "big")},
    },
    "column": {
        "left": {"zh": ("左侧", "左边", "左方", "左半边"), "en": ("on the left", "on the left side", "at the left")},
        "centre": {
            "zh": ("中央", "正中", "中间", "中部"),
            "en": ("in the centre", "in the middle", "at the center"),
        },
        "right": {
            "zh": ("右侧", "右边", "右方", "右半边"),
            "en": ("on the right", "on the right side", "at the right"),
        },
    },
    "drop": {
        "low": {
            "zh": ("低处", "较低处", "离地不高处"),
            "en": ("low", "low above the floor", "not far above the floor"),
        },
        "high": {"zh": ("高处", "较高处", "离地很高处"), "en": ("high", "high above the floor", "high up")},
    },
    "release": {
        "at once": {
            "zh": ("立刻", "一开始就", "马上", "随即"),
            "en": ("at once", "right away", "immediately"),
        },
        "a little later": {
            "zh": ("稍后", "停顿片刻后", "过了一会儿", "悬停片刻后"),
            "en": ("a little later", "after a short pause", "after a moment"),
        },
        "much later": {
            "zh": ("很久之后", "静止许久后", "等了好一阵才", "悬停很久后"),
            "en": ("much later", "after a long pause", "after a long wait"),
        },
    },
    "background": {
        "night blue": {"zh": ("深夜蓝色", "夜蓝色", "深蓝夜空色"), "en": ("night blue", "dark blue")},
        "warm beige": {"zh": ("暖米色", "米棕色", "温暖的米色"), "en": ("warm beige", "beige")},
        "grey-green": {"zh": ("灰绿色", "暗灰绿色", "素净的灰绿色"), "en": ("grey-green", "muted green")},
    },
}

SOUNDS_ZH: Wordings = {
    "ball": ("低沉短促的橡胶闷响", "沉闷的橡胶撞击声", "橡胶落地的低沉“咚”声", "短促的皮球闷响"),
    "cube": ("干脆的木头敲击声", "木块落地的“笃”声", "短促的木质叩击声", "清楚的木头碰撞声"),
    "triangle": ("明亮的金属鸣响", "带余音的金属撞击声", "金属落地的“铛”声", "清亮绵长的金属声"),
    "star": ("清脆高亮的玻璃声", "玻璃碰撞的“叮”声", "尖细清脆的玻璃铃音", "高音的玻璃轻响"),
}
SOUNDS_EN: Wordings = {
    "ball": ("a dull rubber thump", "a low, short thud", "a soft rubber thump"),
    "cube": ("a dry wooden knock", "a wooden tap", "a short wooden knock"),
    "triangle": ("a bright metal ring", "a ringing metallic clang", "a long metal ring"),
    "star": ("a high glass chime", "a clear glassy ting", "a high, clear chime of glass"),
}
STYLES_ZH = (
    "简洁的二维动画，光线柔和", "极简的平面动画，光照柔和", "扁平动画风格，光线均匀", "简约的图形动画，柔和顶光",
    "卡通动画，光线明亮",
)  # fmt: skip
BACKGROUNDS_ZH = (
    "背景是{}的墙面，下方是深色地面", "{}背景，底部是较暗的地板", "{}的背景前有深色的地面", "场景为{}背景和暗色地板",
)  # fmt: skip
HANGING_ZH = (
    "一个{size}{colour}{shape}静止悬在画面{column}的{drop}", "画面{column}的{drop}，悬着一个{size}{colour}{shape}",
    "一个{colour}的{size}{shape}停在{column}的{drop}一动不动", "{column}{drop}的空中有一个{size}{colour}{shape}",
)  # fmt: skip
FALLING_ZH = (
    "它{}松开，直直落下", "它{}被释放，在重力作用下加速坠落", "它{}开始下落", "它{}垂直掉下来", "它{}下坠，越落越快",
)  # fmt: skip
BOUNCING_ZH: dict[int, tuple[str, ...]] = {
    1: ("砸到地面后停住", "撞上地板便不再动", "落地后稳稳停下"),
    2: ("撞到地面后轻轻弹起一次再停住", "落地弹起一下，随后静止", "碰到地板反弹一次后停下"),
    3: ("撞到地面后弹起两次，一次比一次低", "落地后连弹两下才静止", "碰到地板反弹两次后停下"),
}
# When the shape first touches the floor, in seconds.
MOMENTS_ZH = ("约{}秒时", "大约{}秒时", "{}秒时", "在第{}秒")
SOUNDING_ZH = (
    "每次触地都发出{sound}，声音来自{side}", "落地瞬间传来{sound}，从{side}响起", "伴随着{side}传来的{sound}",
    "触地的同时，{side}响起{sound}",
)  # fmt: skip
SIDES_ZH: Wordings = {
    "left": ("左侧", "左边", "左声道一侧"),
    "centre": ("正中", "中间", "正前方"),
    "right": ("右侧", "右边", "右声道一侧"),
}
CAMERAS_ZH = ("固定机位", "镜头固定不动", "静止镜头", "摄像机保持不动", "正面固定镜头")

STYLE_SHARES = {"dense": 0.65, "short": 0.15, "english": 0.20}
# How many captions of a style say when the shape touches the floor, where the caller does not decide.
MOMENT_SHARES = {"dense": 0.75, "short": 0.0, "english": 0.4}

VOCABULARY_HINT: dict[str, dict[str, tuple[str, ...]]] = {
    language: {fact: tuple(names[language][0] for names in values.values()) for fact, values in WORDS.items()}
    for language in ("en", "zh")
}


def caption(
    scene: Scene, rng: np.random.Generator, style: str, moment: bool | None = None, setting: bool = True
) -> str:
    """Words for `scene`: "dense" (Chinese, every fact), "short" (Chinese, some facts) or "english" (some facts).

    moment: whether to say when the shape first touches the floor, to a tenth of a second; None draws it by
    MOMENT_SHARES. Short captions never do. setting: whether short and English ones may name the wall and the camera.
    """
    grammars: dict[str, Callable[[Scene, np.random.Generator, str], str]] = {
        "dense": _dense,
        "short": partial(_short, setting=setting),
        "english": partial(_english, setting=setting),
    }
    if style not in grammars:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(grammars)}")
    drawn = bool(rng.random() < MOMENT_SHARES[style])
    named = drawn if moment is None else moment
    return grammars[style](scene, rng, f"{contacts(scene)[0].time:.1f}" if named else "")


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a random style, in the shares of `STYLE_SHARES`."""
    return caption(scene, rng, str(rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values()))))


def known_words(text: str) -> dict[str, str]:
    """Which facts `text` names in words that the nano model was trained on, as {"shape": "ball", "colour": "red"}."""
    found: dict[str, str] = {}
    rest = text.lower()
    # Backgrounds first: their "night blue" is no blue shape.
    for fact in ("background", *(fact for fact in WORDS if fact != "background")):
        for value, names in WORDS[fact].items():
            # "小" and "大" stand in too many other words to mean a size.
            patterns = [] if fact == "size" else [re.escape(name) for name in names["zh"]]
            patterns += [rf"\b{re.escape(name)}s?\b" for name in names["en"]]
            pattern = "|".join(patterns)
            if re.search(pattern, rest):
                found.setdefault(fact, value)
                rest = re.sub(pattern, " ", rest) if fact == "background" else rest
    return found


def _dense(scene: Scene, rng: np.random.Generator, moment: str) -> str:
    words = _words(scene, rng, "zh")
    style = pick(rng, STYLES_ZH)
    background = pick(rng, BACKGROUNDS_ZH).format(words["background"])
    action = falling_action(scene, rng, bool(moment), words)
    camera = pick(rng, CAMERAS_ZH)
    orders = (
        f"{style}。{background}。{action}{camera}。",
        f"{background}。{action}{camera}。",
        f"{background}，{camera}。{action}",
        f"{style}，{camera}。{background}。{action}",
        f"{action}{background}。{style}，{camera}。",
        f"{camera}，{style}。{action}{background}。",
        f"{background}，{camera}。{action}{style}。",
    )
    return pick(rng, orders)


def falling_action(scene: Scene, rng: np.random.Generator, moment: bool, words: dict[str, str] | None = None) -> str:
    """The sentences of a dense caption that say what hangs where, falls, and sounds; `words` as `_words` gives them."""
    words = words or _words(scene, rng, "zh")
    hits = contacts(scene)
    hanging = pick(rng, HANGING_ZH).format(**words)
    falling = pick(rng, FALLING_ZH).format(words["release"])
    landing = pick(rng, MOMENTS_ZH).format(f"{hits[0].time:.1f}") if moment else ""
    bouncing = landing + pick(rng, BOUNCING_ZH[len(hits)])
    sound, side = pick(rng, SOUNDS_ZH[scene.shape]), pick(rng, SIDES_ZH[scene.column])
    sounding = pick(rng, SOUNDING_ZH).format(sound=sound, side=side)
    return f"{hanging}{pick(rng, '，。')}{falling}，{bouncing}{pick(rng, '，。')}{sounding}。"


def _short(scene: Scene, rng: np.random.Generator, moment: str, setting: bool) -> str:
    words = _words(scene, rng, "zh")
    keep = {fact: rng.random() < 0.5 for fact in words}
    keep["background"] &= setting
    size = words["size"] if keep["size"] else ""
    thing = f"{size}{words['colour']}{pick(rng, ('', '的'))}{words['shape']}"
    if rng.random() < 0.25:
        return thing
    place = f"画面{words['column']}，" if keep["column"] else ""
    height = f"从{words['drop']}" if keep["drop"] else ""
    release = words["release"] if keep["release"] else ""
    end = pick(rng, ("", "到地上", "，弹了几下" if len(contacts(scene)) > 1 else "，停在地上", "到地板上"))
    sound = f"，发出{pick(rng, SOUNDS_ZH[scene.shape])}" if rng.random() < 0.4 else ""
    background = f"，{words['background']}背景" if keep["background"] else ""
    return (
        f"{place}{pick(rng, ('一个', ''))}{thing}{release}{height}{pick(rng, ('落下', '掉下', '坠落'))}"
        f"{end}{sound}{background}{pick(rng, ('', '。'))}"
    )


def _english(scene: Scene, rng: np.random.Generator, moment: str, setting: bool) -> str:
    words = _words(scene, rng, "en")
    keep = {fact: rng.random() < 0.6 for fact in words}
    keep["background"] &= setting
    size = f"{words['size']} " if keep["size"] else ""
    thing = f"{size}{words['colour']} {words['shape']}"
    if rng.random() < 0.15 and not moment:
        return thing
    place = f" {words['column']}" if keep["column"] else ""
    background = f" against a {words['background']} background" if keep["background"] else ""
    verb = pick(rng, ("falls", "drops", "falls down", "is released and falls"))
    release = f" {words['release']}" if keep["release"] else ""
    bounce = pick(rng, ("and lands", "and hits the floor", "and bounces" if len(contacts(scene)) > 1 else "and stops"))
    bounce += f" at {moment} s" if moment else ""
    sound = f" with {pick(rng, SOUNDS_EN[scene.shape])}" if rng.random() < 0.6 else ""
    if keep["drop"] and rng.random() < 0.7:
        text = f"{article(thing)} {thing} hangs {words['drop']}{place}{background}. It {verb}{release} {bounce}{sound}."
    else:
        text = f"{article(thing)} {thing}{place} {verb}{release} {bounce}{sound}{background}."
    text = text[0].upper() + text[1:]
    return text + pick(rng, ("", "", " Fixed camera.", " Simple 2D animation, fixed camera.") if setting else ("",))


def _words(scene: Scene, rng: np.random.Generator, language: str) -> dict[str, str]:
    """A wording of every fact of the scene; the plainest one most often."""
    result = {}
    for fact, values in WORDS.items():
        names = values[getattr(scene, fact)][language]
        result[fact] = names[0] if rng.random() < 0.4 else pick(rng, names)
    return result


def article(thing: str) -> str:
    """The one that English puts before `thing`."""
    return "an" if thing[0] in "aeiou" else "a"


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]

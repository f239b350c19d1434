"""A closed world of spoken requests in six languages.

A request is a semantic frame such as `Frame("switch", ("on", "light", "kitchen"))`. Each frame is rendered in any of
the six languages by one template per language, so a translation is exact by construction. Frames are split into
train, validation and test by a hash of their content, so all translations of a frame (and its polite form) stay
together.
"""

import functools
import hashlib
from dataclasses import dataclass

from benchmarks.nanoworld.lexicon import (
    CITIES,
    COLOURS,
    DAYS,
    DEVICES,
    GENRES,
    ITEMS,
    NUMBERS,
    OBJECTS,
    OPENABLES,
    PLACES,
    ROOMS,
    UNITS,
)

LANGUAGES = ("en", "zh", "vi", "id", "es", "de")
SPLITS = ("train", "validation", "test")
PLEASE = {
    "en": "{} please",
    "zh": "请{}",
    "vi": "vui lòng {}",
    "id": "tolong {}",
    "es": "{} por favor",
    "de": "{} bitte",
}
SPLIT_BOUNDS = (78, 84)  # per cent of frames below: train; between: validation; above: test
CODES_KEPT = 4  # one in so many of the thousand three-digit codes is part of the world


@dataclass(frozen=True)
class Frame:
    """What a request means: its kind, the values of its slots in template order, and whether it is polite."""

    kind: str
    slots: tuple[str | int, ...]
    please: bool = False

    @property
    def key(self) -> str:
        """A stable name of the content, without politeness."""
        return "|".join([self.kind, *map(str, self.slots)])

    @property
    def split(self) -> str:
        """The frame's part of the world. Bare numbers are a closed list of words, so they are all in train."""
        if self.kind == "number":
            return "train"
        bucket = stable_hash(self.key) % 100
        return SPLITS[sum(bucket >= bound for bound in SPLIT_BOUNDS)]

    def text(self, language: str) -> str:
        """The request in one language: no punctuation, names (and German nouns) with a capital."""
        sentence = RENDERERS[self.kind](language, *self.slots)
        return PLEASE[language].format(sentence) if self.please else sentence


def stable_hash(text: str) -> int:
    """A hash that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big")


def number(language: str, value: int, counting: bool = False) -> str:
    """The word of a number; `counting` selects Chinese 两 before a measure word."""
    return "两" if counting and language == "zh" and value == 2 else NUMBERS[language][value]


def day(language: str, name: str) -> str:
    """A day as an adverb: "on Monday", "el lunes", "heute"."""
    return DAYS[name][language]


def switch(language: str, action: str, device: str, room: str) -> str:
    noun, where = DEVICES[device][language], ROOMS[room][language]
    on = action == "on"
    match language:
        case "en":
            return f"turn {action} the {noun} in the {where}"
        case "zh":
            return f"{'打开' if on else '关掉'}{where}的{noun}"
        case "vi":
            return f"{'bật' if on else 'tắt'} {noun} ở {where}"
        case "id":
            return f"{'nyalakan' if on else 'matikan'} {noun} di {where}"
        case "es":
            return f"{'enciende' if on else 'apaga'} {noun} en {where}"
    return f"schalte {noun} {where} {'ein' if on else 'aus'}"


def opening(language: str, action: str, device: str, room: str) -> str:
    noun, where = OPENABLES[device][language], ROOMS[room][language]
    verbs = {"en": "open close", "zh": "打开 关上", "vi": "mở đóng", "id": "buka tutup", "es": "abre cierra"}
    verb = verbs.get(language, "öffne schließe").split()[action == "close"]
    return {
        "en": f"{verb} the {noun} in the {where}",
        "zh": f"{verb}{where}的{noun}",
        "vi": f"{verb} {noun} ở {where}",
        "id": f"{verb} {noun} di {where}",
        "es": f"{verb} {noun} en {where}",
        "de": f"{verb} {noun} {where}",
    }[language]


def colour(language: str, name: str, room: str) -> str:
    shade, where = COLOURS[name][language], ROOMS[room][language]
    return {
        "en": f"make the light in the {where} {shade}",
        "zh": f"把{where}的灯变成{shade}",
        "vi": f"đổi đèn ở {where} sang màu {shade}",
        "id": f"ubah lampu di {where} menjadi {shade}",
        "es": f"cambia la luz en {where} a {shade}",
        "de": f"mache das Licht {where} {shade}",
    }[language]


def timer(language: str, count: int, unit: str) -> str:
    amount, what = number(language, count, counting=True), UNITS[unit][language]
    return {
        "en": f"set a timer for {amount} {what}",
        "zh": f"设置{amount}{what}的定时器",
        "vi": f"đặt hẹn giờ {amount} {what}",
        "id": f"pasang pengatur waktu {amount} {what}",
        "es": f"pon un temporizador de {amount} {what}",
        "de": f"stelle einen Timer auf {amount} {what}",
    }[language]


def alarm(language: str, hour: int, when: str) -> str:
    at, on = number(language, hour, counting=True), day(language, when)
    return {
        "en": f"wake me up at {at} {on}",
        "zh": f"{on}{at}点叫醒我",
        "vi": f"đánh thức tôi lúc {at} giờ {on}",
        "id": f"bangunkan saya pukul {at} {on}",
        "es": f"despiértame a las {at} {on}",
        "de": f"wecke mich {on} um {at}",
    }[language]


def arithmetic(language: str, operation: str, left: int, right: int, form: int) -> str:
    a, b = number(language, left), number(language, right)
    sign = SIGNS[operation][language]
    term = f"{a}{sign}{b}" if language == "zh" else f"{a} {sign} {b}"
    return SUM_FORMS[language][form].format(term)


SIGNS = {
    "plus": {"en": "plus", "zh": "加", "vi": "cộng", "id": "tambah", "es": "más", "de": "plus"},
    "minus": {"en": "minus", "zh": "减", "vi": "trừ", "id": "kurang", "es": "menos", "de": "minus"},
}
SUM_FORMS = {
    "en": ("what is {}", "tell me what {} is", "calculate {}", "do you know what {} is"),
    "zh": ("{}等于多少", "告诉我{}等于多少", "计算{}", "你知道{}等于多少吗"),
    "vi": ("{} bằng mấy", "cho tôi biết {} bằng mấy", "tính {}", "bạn có biết {} bằng mấy không"),
    "id": ("berapa {}", "beri tahu saya berapa {}", "hitung {}", "apakah kamu tahu berapa {}"),
    "es": ("cuánto es {}", "dime cuánto es {}", "calcula {}", "sabes cuánto es {}"),
    "de": ("was ist {}", "sag mir was {} ist", "berechne {}", "weißt du was {} ist"),
}


def code(language: str, *digits: int) -> str:
    words = [number(language, digit) for digit in digits]
    opening_words = {
        "en": "the code is",
        "zh": "密码是",
        "vi": "mã số là",
        "id": "kodenya adalah",
        "es": "el código es",
        "de": "der Code ist",
    }
    return opening_words[language] + ("".join(words) if language == "zh" else " " + " ".join(words))


def weather(language: str, city: str, when: str) -> str:
    where, on = CITIES[city][language], day(language, when)
    return {
        "en": f"what is the weather in {where} {on}",
        "zh": f"{on}{where}天气怎么样",
        "vi": f"thời tiết ở {where} {on} thế nào",
        "id": f"bagaimana cuaca di {where} {on}",
        "es": f"qué tiempo hace en {where} {on}",
        "de": f"wie ist das Wetter {on} in {where}",
    }[language]


def route(language: str, start: str, goal: str) -> str:
    a, b = PLACES[start][language], PLACES[goal][language]
    if language == "de":
        return f"wie komme ich von {german_dative(a)} zu {german_dative(b)}"
    return {
        "en": f"how do i get from the {a} to the {b}",
        "zh": f"从{a}到{b}怎么走",
        "vi": f"đi từ {a} đến {b} thế nào",
        "id": f"bagaimana cara dari {a} ke {b}",
        "es": f"cómo voy desde {a} hasta {b}",
    }[language]


def german_dative(phrase: str) -> str:
    """ "der Bahnhof" -> "dem Bahnhof", "die Schule" -> "der Schule"."""
    article, noun = phrase.split()
    return f"{'der' if article == 'die' else 'dem'} {noun}"


def hours(language: str, place: str, when: str) -> str:
    where, on = PLACES[place][language], day(language, when)
    return {
        "en": f"when does the {where} open {on}",
        "zh": f"{on}{where}几点开门",
        "vi": f"{where} mở cửa lúc nào {on}",
        "id": f"kapan {where} buka {on}",
        "es": f"cuándo abre {where} {on}",
        "de": f"wann öffnet {where} {on}",
    }[language]


def shopping(language: str, count: int, item: str) -> str:
    amount, what = number(language, count, counting=True), ITEMS[item][language]
    return {
        "en": f"add {amount} {what} to the list",
        "zh": f"把{amount}{what}加到清单里",
        "vi": f"thêm {amount} {what} vào danh sách",
        "id": f"tambahkan {amount} {what} ke daftar",
        "es": f"añade {amount} {what} a la lista",
        "de": f"setze {amount} {what} auf die Liste",
    }[language]


def search(language: str, thing: str, form: int) -> str:
    noun = OBJECTS[thing][language]
    if language == "de":
        article, noun = noun.split()
        mine = {"der": "mein", "die": "meine", "das": "mein"}[article]
        whom = {"der": "meinen"}.get(article, mine)
        return (
            f"wo ist {mine} {noun}",
            f"weißt du wo {mine} {noun} ist",
            f"suche {whom} {noun}",
            f"ich finde {whom} {noun} nicht",
        )[form]
    if language == "es":
        noun = noun.split()[1]
    return SEARCH_FORMS[language][form].format(noun)


SEARCH_FORMS = {
    "en": ("where is my {}", "do you know where my {} is", "look for my {}", "i can not find my {}"),
    "zh": ("我的{}在哪里", "你知道我的{}在哪里吗", "找一找我的{}", "我找不到我的{}"),
    "vi": (
        "{} của tôi ở đâu",
        "bạn có biết {} của tôi ở đâu không",
        "hãy tìm {} của tôi",
        "tôi không tìm thấy {} của tôi",
    ),
    "id": ("di mana {} saya", "apakah kamu tahu di mana {} saya", "cari {} saya", "saya tidak menemukan {} saya"),
    "es": ("dónde está mi {}", "sabes dónde está mi {}", "busca mi {}", "no encuentro mi {}"),
}


def music(language: str, genre: str, room: str) -> str:
    style, where = GENRES[genre][language], ROOMS[room][language]
    return {
        "en": f"play {style} in the {where}",
        "zh": f"在{where}播放{style}",
        "vi": f"phát {style} ở {where}",
        "id": f"putar {style} di {where}",
        "es": f"pon {style} en {where}",
        "de": f"spiele {style} {where}",
    }[language]


RENDERERS = {
    "switch": switch,
    "open": opening,
    "colour": colour,
    "timer": timer,
    "alarm": alarm,
    "sum": arithmetic,
    "number": number,
    "code": code,
    "weather": weather,
    "route": route,
    "hours": hours,
    "shopping": shopping,
    "search": search,
    "music": music,
}


@functools.cache
def frames() -> tuple[Frame, ...]:
    """Every frame of the world, in a fixed order."""
    numbers = sorted(NUMBERS["en"])
    plain = [Frame("number", (value,)) for value in numbers]
    for operation in SIGNS:
        pairs = [(a, b) for a in range(1, 10) for b in range(1, 10) if operation == "plus" or a > b]
        plain += [Frame("sum", (operation, a, b, form)) for a, b in pairs for form in range(4)]
    codes = [(n // 100, n // 10 % 10, n % 10) for n in range(1000) if stable_hash(f"code{n}") % CODES_KEPT == 0]
    plain += [Frame("code", digits) for digits in codes]
    plain += [Frame("alarm", (hour, when)) for hour in range(2, 13) for when in DAYS]
    plain += [Frame("weather", (city, when)) for city in CITIES for when in DAYS]
    plain += [Frame("route", (start, goal)) for start in PLACES for goal in PLACES if start != goal]
    plain += [Frame("hours", (place, when)) for place in PLACES for when in DAYS]
    plain += [Frame("search", (thing, form)) for thing in OBJECTS for form in range(4)]
    commands = [Frame("switch", (act, what, room)) for act in ("on", "off") for what in DEVICES for room in ROOMS]
    commands += [Frame("open", (act, what, room)) for act in ("open", "close") for what in OPENABLES for room in ROOMS]
    commands += [Frame("colour", (name, room)) for name in COLOURS for room in ROOMS]
    commands += [Frame("timer", (count, unit)) for count in numbers if 2 <= count <= 50 for unit in UNITS]
    commands += [Frame("shopping", (count, item)) for count in range(2, 11) for item in ITEMS]
    commands += [Frame("music", (genre, room)) for genre in GENRES for room in ROOMS]
    polite = [Frame(frame.kind, frame.slots, please=True) for frame in commands]
    return tuple(plain + commands + polite)


@functools.cache
def frames_of(split: str) -> tuple[Frame, ...]:
    """The frames of one split."""
    return tuple(frame for frame in frames() if frame.split == split)


@functools.cache
def frames_by_kind(split: str) -> dict[str, tuple[Frame, ...]]:
    """The frames of one split by kind, so that sampling can give every kind its share."""
    return {kind: tuple(f for f in frames_of(split) if f.kind == kind) for kind in RENDERERS}

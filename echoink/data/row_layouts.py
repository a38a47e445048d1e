"""Finds the question and the media of a row: in our columns, or in those of other trainers.

Media are read under `path` (an object, or a text where the row has one medium), in columns `image`, `audio`, `video`
(also `images`, `image_path`, `audio_file`, …; a value, or a list of one), and in a chat (`messages`, `conversations`,
`prompt`) with parts or with `<image>`, `<audio>`, `<video>` tags. Any other field that looks like a medium is an error:
a question must not silently lose its media.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from echoink.common.errors import UserError
from echoink.media.loaders import Embedded

KINDS = ("image", "audio", "video")

NOUNS = {"image": "picture", "audio": "sound", "video": "video"}

_COLUMN = re.compile(r"(image|audio|video)s?(?:_?(?:path|file|filename|filepath)s?)?", re.IGNORECASE)

_HELD = re.compile(r"(image|audio|video)s?_?(?:ur[il]|href|b64|base64|bytes|data|content)s?", re.IGNORECASE)
"""What other formats call a file's content or its URL."""

_SYNONYM = re.compile(
    r"(?:img|picture|photo|frame|sound|speech|wav|waveform|clip|movie|media|multi_modal_data|pixel_value|input_feature)s?",
    re.IGNORECASE,
)
"""What others call media."""

_EXTENSIONS = {
    "image": "jpg jpeg png gif bmp webp tif tiff avif heic heif jxl jp2",
    "audio": "wav mp3 flac ogg opus m4a aac aiff aif au wma amr caf w64 mp2 ac3 spx mka",
    "video": "mp4 mkv webm mov avi m4v mpg mpeg ts 3gp flv wmv ogv mxf m2ts",
}
_BY_EXTENSION = {extension: kind for kind, names in _EXTENSIONS.items() for extension in names.split()}

_FILE = re.compile(r"(?:\w+_)?(?:file|path|name|src|ur[il])(?:_?names?)?s?", re.IGNORECASE)
"""Fields whose value may be a file name with blanks; in other fields such a text may be a sentence."""

_TEXTS = ("problem", "options", "solution", "response", "responses", "problem_id")

_CHATS = ("messages", "conversations", "prompt")

_TAG = re.compile(r"<(image|audio|video)>")

_LIKE_A_TAG = re.compile(
    r"</?(?:start_of_)?(?:image|img|picture|audio|sound|speech|video)s?"
    r"(?:[ _]?\d*|here|_(?:placeholder|token|soft_token|patch|context|pad))(?:\s+[\w-]+=[^<>]*)?\s*/?>",
    re.IGNORECASE,
)
"""`_TAG`, its end, and what others write in its place."""

_PART_OF_FILE = re.compile(
    r"(?:\w+_)?(?:start|end|begin|from|to|offset|bbox|box|crop|segment|timestamp|time_range)s?(?:_\w+)?"
)
"""Fields that select a part of a file; files are read whole."""

_TIME = re.compile(r"\d+(?::\d+)*(?:[.,]\d+)?\s*s?")


def _selects(value: Any) -> bool:
    """Whether a field's value is a time or a place in a file, or several."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_selects, value))
    if isinstance(value, str):
        return _TIME.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class ParsedRow:
    """A row in our columns."""

    row: dict[str, Any]
    """Its fields without media and nulls; the question is `problem`."""
    media: dict[str, Any]
    """At most one value for each of `KINDS`."""
    notes: tuple[str, ...]
    """Parts of the row that are not used."""


def read(row: Mapping[str, Any], where: str) -> ParsedRow:
    """Find a row's question and media.

    Args:
        row: as it is stored.
        where: what to call it in errors.

    Raises:
        UserError: several media of a kind (in one column, or in `image` and `image2`), two questions,
            a tag without a medium, or a field that looks like a medium.
    """
    row = _without_nan(row)
    columns = {key: value for key, value in row.items() if _COLUMN.fullmatch(key)}
    paths, notes = _paths(row, columns, where)
    found: dict[str, Any] = {}
    null, used = set(), {"path", *columns}
    for key, value in paths.items():
        if (match := _COLUMN.fullmatch(key)) is None:
            raise UserError(f"{where}: path holds {key!r}", f"it may hold {', '.join(KINDS)}")
        _add(found, null, match.group(1).lower(), value, where=where)
    notes += [
        f"{key} is an empty text" for key, value in columns.items() if isinstance(value, str) and not value.strip()
    ]
    notes += _add_columns(found, null, columns, where)
    rest = {key: value for key, value in row.items() if key not in used and value is not None}
    for chat in _CHATS:
        if isinstance(rest.get(chat), list | tuple):
            text, parts, unused = _chat(rest.pop(chat), f"{where}, {chat}")
            for kind, value in parts:
                if value is not None:
                    _add(found, null, kind, value, where=where)
            if lost := [kind for kind, _ in parts if kind not in found]:
                raise UserError(f"{where}: {chat} has a part of type {lost[0]}, but the row has no {NOUNS[lost[0]]}")
            notes += _settle_question(rest, text, f"{where}, {chat}")
            notes += unused
    notes += _refuse_lost_media(rest, found, where)
    parts = [key for key, value in rest.items() if _PART_OF_FILE.fullmatch(key) and _selects(value)]
    if parts and {"audio", "video"} & set(found):
        notes.append(f"{', '.join(parts)}: not read, files are read from their beginning")
    if isinstance(rest.get("problem"), str):
        rest["problem"] = _without_tags(rest["problem"], found, where)
    options = rest.get("options")
    for option in options if isinstance(options, list | tuple) else ():
        if isinstance(option, str) and (tag := _LIKE_A_TAG.search(option)):
            hint = "media go before the question; options are texts"
            raise UserError(f"{where}: the option {option!r} has {tag.group()}", hint)
    if found or row.get("data_type") != "text":
        empty = {kind for kind in null for note in notes if f"{kind} is an empty text" in note}
        notes += [f"{kind} is null" for kind in sorted(null - set(found) - empty)]
    return ParsedRow(rest, found, tuple(notes))


def _paths(row: Mapping[str, Any], columns: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], list[str]]:
    """The media under `path`, by their kind, and notes."""
    paths = row.get("path")
    if isinstance(paths, str) and any(map(_given, columns.values())):
        return {}, ["path is not read: the media are in columns of their own"]
    if isinstance(paths, str) and not paths.lstrip().startswith("{"):  # as in Video-R1's rows
        one = str(row.get("data_type") or _BY_EXTENSION.get(paths.rpartition(".")[2].lower())).removesuffix("_audio")
        paths = {one: paths} if one in KINDS else paths or None
    if paths is not None and not isinstance(paths, Mapping):
        hint = "a path alone needs data_type image, audio, video or video_audio" if isinstance(paths, str) else ""
        what = f'path must be an object such as {{"image": …}}, not {type(paths).__name__}'
        raise UserError(f"{where}: {what}", hint)
    return paths or {}, [f"path.{key} is an empty text" for key, value in (paths or {}).items() if value == ""]


def _without_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose missing values are null: pandas writes them as NaN."""
    found = {key: None if isinstance(value, float) and value != value else value for key, value in fields.items()}
    if isinstance(found.get("path"), Mapping):
        found["path"] = _without_nan(found["path"])
    return found


def _settle_question(rest: dict[str, Any], text: str, where: str) -> list[str]:
    """Use a chat's text as the question of a row that has none; return notes if the row has one.

    Raises:
        UserError: the chat's text does not contain the row's question.
    """
    own = rest.setdefault("problem", text)
    if own == text or not isinstance(own, str):
        return []
    if " ".join(_TAG.sub(" ", own).split()) not in " ".join(_TAG.sub(" ", text).split()):
        raise UserError(f"{where}: it asks {text[:60]!r}, but the row asks {own[:60]!r}", "remove one of them")
    return ["the words around the question in the chat are not used"]


def _add_columns(found: dict[str, Any], null: set[str], columns: Mapping[str, Any], where: str) -> list[str]:
    """Add the media in columns; return notes. `path` goes first: a column that names another file than it is noted."""
    in_path, first, notes = set(found), {kind: f"path.{kind}" for kind in found}, []
    for key, value in columns.items():
        kind, given = _COLUMN.fullmatch(key).group(1).lower(), _given(value)
        if kind in in_path:
            others = [each for each in given if isinstance(each, str) and _is_another(each, found[kind])]
            if len(given) > 1 and others:
                hint = f"a sample has at most one {NOUNS[kind]}"
                raise UserError(f"{where}: {first[kind]} and {key} name several {NOUNS[kind]}s", hint)
            notes += [_of_another(key, kind)] if others else []
            continue
        if kind in found and given and given != [found[kind]]:
            raise UserError(f"{where}: {first[kind]} and {key} both hold a {NOUNS[kind]}", "remove one of them")
        if given:
            first.setdefault(kind, key)
        _add(found, null, kind, value, where=where)
    return notes


def _given(value: Any) -> list[Any]:
    """The media of a column, which holds one or a list, without nulls and blank texts."""
    several = value if isinstance(value, list | tuple) else [value]
    return [each for each in several if each is not None and not (isinstance(each, str) and not each.strip())]


def _is_another(path: str, medium: Any) -> bool:
    """Whether a path is of another file than the medium: of the same one, one path ends with the other."""
    if not isinstance(medium, str):
        return True
    one, other = (
        [part for part in re.split(r"[/\\]", each.strip()) if part not in ("", ".")] for each in (path, medium)
    )
    length = min(len(one), len(other))
    return one[-length:] != other[-length:]


def _holds_file(value: Any) -> bool:
    return isinstance(value, bytes | Embedded) or (
        isinstance(value, Mapping) and bool({"bytes", "path"} & value.keys())
    )


def _is_medium(value: Any, kind: str) -> bool:
    """Whether a field's value is a file of a kind, or a path or URL of one."""
    if not isinstance(value, str):
        return _holds_file(value)
    text = value.strip().partition("?")[0]
    is_path = re.fullmatch(r"\S*[/\\]\S*", text) is not None
    return is_path or text.startswith("data:") or _BY_EXTENSION.get(text.rpartition(".")[2].lower()) == kind


def _of_another(key: str, kind: str) -> str:
    return f"{key} names another {NOUNS[kind]}, which is not read"


def _add(found: dict[str, Any], null: set[str], kind: str, value: Any, where: str) -> None:
    several = _given(value)
    for each in several:
        _refuse_part(each, f"{where}: {kind}")
    if any(isinstance(each, int | float) and not isinstance(each, bool) for each in several):
        raise UserError(f"{where}: {kind} holds numbers", "store the file's bytes or its path")
    if len(several) > 1 or (kind in found and several and several[0] != found[kind]):
        raise UserError(f"{where} has several {NOUNS[kind]}s", f"a sample has at most one {NOUNS[kind]}")
    if not several:
        null.add(kind)
    else:
        found[kind] = several[0]


def _chat(turns: Iterable[Any], where: str) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """The user's text, the media among its parts (None: it is in a column), and notes."""
    texts, media, notes = [], [], []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: a turn must be an object with role and content")
        role = str(turn.get("role", turn.get("from", ""))).lower()
        content = turn.get("content", turn.get("value"))
        if role == "system":
            notes.append("the system turn is not used (prompt.system sets one)")
        if role not in ("user", "human"):
            media += _media_of(role, content, where)
            continue
        words = []
        content = [content] if isinstance(content, str | Mapping) else content or []
        if not isinstance(content, list | tuple):
            raise UserError(f"{where}: a turn's content must be a text or a list of parts")
        for part in content:
            if isinstance(part, str):
                words.append(part)
            elif isinstance(part, Mapping) and part.get("type") == "text":
                words.append(str(part.get("text") or ""))
            elif isinstance(part, Mapping) and (match := _COLUMN.fullmatch(str(part.get("type", "")))):
                kind = match.group(1).lower()
                value = next((part[key] for key in (part["type"], kind, "path", "bytes") if part.get(key)), None)
                _refuse_part(part, where)
                unread = sorted(
                    k for k, v in part.items() if k != "type" and isinstance(v, str | bytes | Mapping) and v
                )
                if value is None and unread:
                    raise UserError(
                        f"{where}: a part of type {part['type']} has {', '.join(unread)}, which is not read",
                        f"call it {kind}: a path in the dataset's folder, or the file's bytes",
                    )
                media.append((kind, value))  # without a value it refers to a column
                known = ("type", "text", "path", "bytes", kind, part["type"])
                more = [key for key, held in part.items() if held is not None and key not in known]
                notes += [f"{', '.join(more)} of a part of type {part['type']}: not used"] if more else []
            else:
                hint = 'parts are {"type": "text", "text": …} and {"type": "image", "image": <path>} (or audio, video)'
                raise UserError(f"{where}: unknown part of the user's turn: {str(part)[:100]}", hint)
        texts.append(" ".join(words))
    if len(texts) != 1:
        raise UserError(f"{where} has {len(texts)} user turns", "a sample is one question")
    return texts[0], media, list(dict.fromkeys(notes))


def _media_of(role: str, content: Any, where: str) -> list[tuple[str, None]]:
    """The media that tags refer to in a turn of the system or a tool; the row must have them in columns.

    Raises:
        UserError: a part of a system's or a tool's turn is a medium. Only the user's turn is the question.
    """
    found: list[tuple[str, None]] = []
    if role in ("assistant", "gpt", "model"):
        return found
    for part in content if isinstance(content, list | tuple) else [content]:
        kind = str(part.get("type", "")) if isinstance(part, Mapping) else ""
        if re.search("image|audio|video", kind):
            hint = "only the user's turn is read: move it there"
            raise UserError(f"{where}: the {role or 'unnamed'} turn has a part of type {kind}", hint)
        text = part.get("text") if kind else part
        found += [(tag.group(1), None) for tag in _TAG.finditer(text)] if isinstance(text, str) else []
    return found


def _refuse_part(medium: Any, where: str) -> None:
    """Refuse a medium that selects a part of its file."""
    for key, value in medium.items() if isinstance(medium, Mapping) else ():
        if _selects(value) and value != 0 and _PART_OF_FILE.fullmatch(str(key)):
            raise UserError(f"{where} has {key}={value}, but files are read whole", "cut the file and remove the field")


_NUMBERED = re.compile(rf"({'|'.join(KINDS)})s?_?\d+", re.IGNORECASE)


def _refuse_lost_media(row: Mapping[str, Any], found: Mapping[str, Any], where: str) -> list[str]:
    """Refuse a field that holds a file, or names, at any depth, one of a kind that the sample does not have; return
    notes of fields that name another file of a kind that it has.
    """
    notes = []
    for key, value in row.items():
        if key in _TEXTS:
            continue
        if re.fullmatch(rf"({'|'.join(KINDS)})_source", key) and isinstance(value, str):
            continue  # it says what a medium was cut from, which may be a file of another kind
        listed = [each for each in value if each is not None] if isinstance(value, list | tuple) else [value]
        first = listed[0] if listed else None
        holds = _holds_file(first)
        named, shown = next(
            ((kind, text) for kind, text in _named(key, value) if (kind not in found if kind else not found)),
            (None, first),
        )
        if (numbered := _NUMBERED.fullmatch(key)) and (kind := numbered.group(1).lower()) in found:
            second = (each for each in listed if _is_medium(each, kind))
            if any(not isinstance(each, str) or _is_another(each, found[kind]) for each in second):
                hint = f"a sample has at most one {NOUNS[kind]}: remove {key}, or join the files"
                raise UserError(f"{where}: {key} is a second {NOUNS[kind]}", hint)
        unread = _SYNONYM.fullmatch(key) and isinstance(value, list | tuple | Mapping) and len(value) > 0
        if holds or unread or named is not None:
            raise UserError(
                f"{where}: the field {key!r} looks like a medium and is not read: {str(shown)[:80]!r}",
                f"call it {named or 'image, audio or video'}, or remove it if the question is not about it",
            )
        known = [(kind, text) for kind, text in _named(key, value) if isinstance(found.get(kind), str)]
        notes += [_of_another(key, kind) for kind in sorted({k for k, text in known if _is_another(text, found[k])})]
    return notes


_SITE = re.compile(r"https?://[^/]+/?|www\.[^/]+", re.IGNORECASE)
"""The address of a site; in .au or .ts it ends as a file of media does."""


def _named(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Kind and text of each medium that a field, or one inside it, names: by field name or file extension.

    The kind of a path without an extension is empty. Of a list, three items are read.
    """
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _named(str(name), inside)
    elif isinstance(value, list | tuple):
        for each in value[:3]:
            yield from _named(key, each)
    elif isinstance(value, str) and (text := value.strip()):
        ending = None if _SITE.fullmatch(text) else _BY_EXTENSION.get(text.rpartition(".")[2].lower())
        if match := _COLUMN.fullmatch(key) or _HELD.fullmatch(key):
            yield match.group(1).lower(), text
        elif ending and ("\n" not in text and ("/" in text or " " not in text or _FILE.fullmatch(key))):
            yield ending, text
        elif _SYNONYM.fullmatch(key) and re.fullmatch(r"\S*[/\\]\S*", text):
            yield "", text


_LEADS_ON = re.compile(
    r"\b(?:to|of|in|with|and|or|from|between|at|on|by|for|than|about|describe|explain|match(?:es)?|fits?|see|hear|is)"
    r"\s+<\w+>\s*$|[和与與跟]\s*<\w+>\s*$",
    re.IGNORECASE,
)
"""The end of a line whose last tag is a part of the sentence: "compare <image> and <audio>"."""

_GOES_ON = re.compile(
    r"['’,]|(?:and|or|with|shows?|contains?|match(?:es)?|belongs?|comes?)\b|[和与與跟中里裡的]", re.IGNORECASE
)
"""What follows a first tag that is a part of the sentence: "<image> and <audio> come from one scene"."""

_IN_CHINESE = {"image": "图片", "audio": "声音", "video": "视频"}
_HAN = re.compile("[\u4e00-\u9fff]")


def _without_tags(text: str, found: Mapping[str, Any], where: str) -> str:
    """A question without the tags that stand for its media; within a sentence, words replace them."""
    for kind in KINDS:
        count = text.count(f"<{kind}>")
        if count and kind not in found:
            raise UserError(f"{where}: the question has <{kind}>, but the row has no {NOUNS[kind]}")
        if count > 1:
            raise UserError(f"{where}: the question has <{kind}> {count} times", f"a sample has one {NOUNS[kind]}")
    if like := next((one for one in _LIKE_A_TAG.findall(text) if not _TAG.fullmatch(one)), None):
        raise UserError(f"{where}: the question has {like}, which is not read", "<image>, <audio> or <video>, or words")
    lines = []
    for line in text.split("\n"):
        if _TAG.search(line):
            first = re.match(r"(?:\s*<(?:image|audio|video)>)+\s*", line)
            is_statement = first and re.match(r"(?:is|are|was|were)\b.*[^?？\s]\s*$", line[first.end() :])
            if first and not is_statement and not _GOES_ON.match(line, first.end()):
                line = line[first.end() :]
            line = line if _LEADS_ON.search(line) else re.sub(r"\s*(?:<(?:image|audio|video)>\s*)+$", "", line)
            nouns = _IN_CHINESE if _HAN.search(line) else {kind: f"the {noun}" for kind, noun in NOUNS.items()}
            line = _TAG.sub(lambda match, nouns=nouns: nouns[match.group(1)], line)
            if not line.strip():
                continue
        lines.append(line)
    return "\n".join(lines)

"""Reads numbers from answers: digits, words, units, and sums, products and fractions. Pure functions on text."""

import ast
import math
import operator
import re

from echoink.rewards.parsing import unwrapped

_LONGEST = 200
"""A longer answer (in characters) is no number; this bounds the parser's work."""

_ONES = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: number for number, word in enumerate(f"zero {_ONES} {_TEENS}".split())}
for _number_of_tens, _ten in enumerate(_TENS.split(), 2):
    _NUMBER_WORDS[_ten] = 10 * _number_of_tens
    _NUMBER_WORDS |= {f"{_ten}-{word}": 10 * _number_of_tens + one for one, word in enumerate(_ONES.split(), 1)}

_DIGITS = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,2})?"

_TWO_WORDS = re.compile(rf"^({_TENS.replace(' ', '|')})\s+(?=({_ONES.replace(' ', '|')})\b)")
"""The beginning of "twenty one"."""

_NO_UNITS = {"k", "or", "and", "not", "nor", "to", "plus", "minus", "point", "half", "halves", *_NUMBER_WORDS}
_NO_UNITS |= {"squared", "cubed", "pi", "\u03c0", "below", "less", "fewer", "mil", "mn", "bn", "tn", "grand", "tens"}
_NO_UNITS |= {"pair", "pairs", "couple", "couples", "score", "scores", "gross", "doz", "doz."}
_MULTIPLES = (
    "hundred thousand million billion trillion quadrillion lakh crore dozen quarter hundredth thousandth millionth"
)
for _multiple in f"{_MULTIPLES} third fourth fifth sixth seventh eighth ninth tenth".split():
    _NO_UNITS |= {_multiple, f"{_multiple}s"}
_OF_OTHER_LANGUAGES = """
hundert hunderte tausend tausende million millionen mio mio. milliarde milliarden mrd mrd. dutzend
millier milliers mille milliard milliards douzaine douzaines cien ciento cientos mil millón millones billón
billones docena docenas cem milhão milhões bilhão bilhões dúzia dúzias centinaia mila milione milioni mln
miliardo miliardi mld dozzina dozzine honderd duizend miljoen miljard dozijn hundra hundre hundrede tusen tusind miljon
miljoner miljarder millioner milliarder dussin dusin sataa tuhat tuhatta miljoona miljoonaa miljardi miljardia
sto setki tysiąc tysiące tysięcy tys tys. milion miliony milionów miliard miliardy miliardów tuzin tuziny tuzinów
stovky tisíc tisíce milionů miliarda miliard tucet tuctů száz ezer millió milliárd tucat sute mie mii milioane miliarde
yüz milyon milyar düzine trăm nghìn ngàn triệu tỷ tỉ chục tá puluh ratus ribu juta miliar lusin libo elfu
сотня сотни сотен тысяча тысячи тысяч тыс тыс. миллион миллиона миллионов млн млн. миллиард миллиарда миллиардов млрд
млрд. десяток десятка десятков дюжина дюжины дюжин тисяча тисячі мільйон мільйони мільйонів мільярд
εκατό χίλια χιλιάδες εκατομμύριο εκατομμύρια ντουζίνα مئة مائة ألف آلاف مليون ملايين مليار מאה מאות אלף אלפים מיליון
"""
_NO_UNITS |= {*_OF_OTHER_LANGUAGES.split()}
"""Words after a number that are not a unit, because they change the number."""

PERCENT = (
    r"(?:[%‰]|(?<![^\W\d_])(?:(?:per|pour|por|pro)\s?(?:cent(?:s|o|um|age)?|ciento|mille)(?![^\W_])"
    r"|prozent|pro[ck]ent\w*|процент\w*))"
)
"""A pattern for the word after a share, percent or per mille, in several languages."""

_CURRENCY = (
    r"(?:(?:usd?|au?|ca?|hk|nz|sg?|r)?\$|[€£¥₹₩₽₺₫₴₱฿₦₪]"
    r"|(?:usd|eur|gbp|chf|jpy|cny|rmb|inr)(?=[\s\d.]|$)|rs\.?(?=[\s\d]|$))"
)
"""A pattern for the sign or the code of a currency, which stands before or after an amount."""

_UNIT = re.compile(r"°|°?[^\W\d_]+(?:[-'/][^\W\d_]+)*[23]?")

_HAN_NO_UNIT = re.compile(
    r"(?!千(?:[克米瓦卡赫帕焦伏牛安]|字节|比特)|百帕|兆(?:[赫瓦帕焦伏]|字节|比特))[十百千万萬亿億兆]"
    r"|[打双雙成](?!鼓|$)|[打双雙成]$|[对對]$"
    r"|[余餘几幾多](?!边|媒)|[来來](?!回)|[個个](?:半$|半[小个個天年月]|多(?!边|媒))|.*[半多]$"
)
"""The same in Chinese: tens to billions (but a kilogram is a unit), more than, some, and a half."""

_HANGUL_NO_UNIT = re.compile(r"[십백천만억조]+(?:[개명번원여장대]|마리|$)")
"""The same in Korean."""


def plain_number(text: str) -> float | None:
    """The number that a text consists of: "-3", "1,234.5", "12 %"; None for any other text."""
    found = re.fullmatch(rf"\s*({_DIGITS})\s*%?\s*[.。]?\s*", text)
    try:
        return float(found.group(1).replace(",", "")) if found else None
    except ValueError:
        return None


def number_in(text: str) -> float | None:
    """The number that an answer gives: a plain number or a number word below 100, perhaps with a currency sign or with
    a unit of one or two words after it ("7 knocks", "60 km/h", "$3", "seven"), in marks as in \\boxed{7}; None if it is
    ambiguous.
    """
    if not (text := _bare(text)):
        return None
    text = re.sub(r"^\u2013(?=[\d.])", "-", text)  # a dash as a minus sign
    text = re.sub(rf"^([-+]?)\s*{_CURRENCY}\s*|(?<=\d)\s*{_CURRENCY}$", r"\1", text, flags=re.IGNORECASE)
    if (plain := plain_number(text)) is not None:
        return plain
    if re.search(r"\d\s*(?:[MBK]|\u03c0)(?:\s|$)", text):  # "$5M" means millions, "2π" is not 2
        return None
    # "5kg" is "5 kg"; normalized, m² is m2 and °C is a degree sign and a C.
    text = _TWO_WORDS.sub(r"\1-", text.casefold())
    first, *unit = re.sub(r"(?<=\d)(?=(?:°|°?[^\W\d_]{1,4}(?:/[^\W\d_]{1,4})?\d?)$)", " ", text).split()[:4] or [""]
    units = all(map(_is_unit, unit))
    if len(unit) > 2 or not units or "times" in unit[:-1]:
        return None
    return float(_NUMBER_WORDS[first]) if first in _NUMBER_WORDS else plain_number(first) if unit else None


def _is_unit(word: str) -> bool:
    """Whether a word after a number leaves it as it is; "2 x3" is a product."""
    parts = re.split("[-'/]", word)
    changes = re.match(r"x\d", word) or _HAN_NO_UNIT.match(word) or _HANGUL_NO_UNIT.match(word)
    return _UNIT.fullmatch(word) is not None and _NO_UNITS.isdisjoint(parts) and not changes


def count_in(text: str) -> float | None:
    """The value of a number (not of a percentage) or of an expression such as "14/2"; None for any other text."""
    number = None if re.search(PERCENT, text, re.IGNORECASE) else number_in(text)
    return value_of(text) if number is None else number


def value_of(text: str) -> float | None:
    r"""The value of a sum, product or fraction, as "14/2" and "\frac{14}{2}" are; None for any other text."""
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"((\1)/(\2))", _bare(text))
    if not re.fullmatch(r"[\d\s.+*/()-]+", text) or re.search(r"[\d.]\s+[\d.]", text):
        return None
    try:
        value = _evaluate(ast.parse("".join(text.split()), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return round(value, 9) if math.isfinite(value) else None


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _evaluate(node: ast.expr) -> float:
    """Raises ValueError for anything but numbers, their sums, products and quotients, such as a power or "7(8)"."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
            return -_evaluate(inner) if isinstance(sign, ast.USub) else _evaluate(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left), _evaluate(right))
    raise ValueError("not a number")


def _bare(text: str) -> str:
    """A number without the marks around it, and with LaTeX's signs as ordinary ones; empty if it is none."""
    # In NFKC "10³" would be 103. Two boxes are two answers.
    if len(text) > _LONGEST or re.search(r"\d[⁰¹²³⁴-⁹]", text) or text.count("\\boxed") > 1:
        return ""
    text = unwrapped(_STOP.sub("", text.strip()))
    text = re.sub(r"^(\*\*|__|`|\$)([^*_`$]+)\1(?=\s+\w)", r"\2", text)  # "**7** knocks", "$7$ knocks"
    text = _STOP.sub("", unwrapped(text.strip("*`\"' ")))
    for written, meant in _LATEX:
        text = written.sub(meant, text)
    return text


_STOP = re.compile(r"[.。]$")

_LATEX = (
    (re.compile(r"\\[,;: ]|(?<=\d)~"), " "),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=[^\W\d_])\^\{?([23])\}?"), r"\1"),
)
"""What LaTeX writes, and what it means: "3\\,kg", "45^\\circ", "\\$3", "m^2"."""

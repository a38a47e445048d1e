"""Reflection in a completion, counted by rules instead of picked by hand: doubt, an answer reaffirmed or revised after
it, and whether the reasoning speaks of what is heard and of what is seen.

These are indicators. The rules look at words, so they err: `experiments/reflection.md` has their precision and recall
on completions that they were not written on. They know English only. A prompt may ask for such words (the paper's
does); then their number says what the prompt asks for. `prompt=plain` asks for none, and is the control.

    doubt        the writer questions its own conclusion or perception, goes back on it or examines it again. Speech in
                 quotation marks is not the writer's, and "no doubt" is none.
    revised      doubt, and before it the reasoning held another option than the one it answers (the paper's Figure 2)
    reaffirmed   doubt, and before it the reasoning leaned to no other option and to the one it answers (Figure 1)
    audio        something heard is spoken of
    image        something seen is spoken of

Which option is held is read from the reasoning, clause by clause (`held`): an option is named by its letter or by words
that no other option has, and the clause concludes it, considers it or rejects it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echoink.rewards.parsing import ANSWER, THINK, option_letter, option_text, parse_answer, parse_letters

VERSION = 2
"""Of the rules; it stands beside what they counted. Numbers of two versions are not comparable."""

SIGNS = ("doubt", "reaffirmed", "revised", "audio", "image")
"""What is counted."""


@dataclass(frozen=True)
class Reflection:
    """What the rules find in one completion."""

    doubt: bool
    reaffirmed: bool
    revised: bool
    audio: bool
    image: bool
    words: int
    """Of the reasoning."""
    cue: str
    """The words that were taken for doubt; empty without."""


_AGAIN = r"consider|think|check|examin|evaluat|assess|count|read|visit|watch|listen|look|analy[sz]|interpret|play"
_CUES = (
    # interjections at the start of a sentence or a clause
    r"(?:^|[.!?…:;)\]\n–—-]\s*|\b(?:but|and|oh|ah|hmm+|no|ok(?:ay)?|well|yet),?\s+)wait\b(?!\s+(?:for|until|on|at|in"
    r"|to|their"
    r"|his|her|there|here|outside|while|as|with|a minute at))",
    r"\bwait[,:.!?…—-]+\s",
    r"(?:^|[.!?…:;\n–—-]\s*|\b(?:but|oh|no),?\s+)(?:hold|hang) on\b(?!\s+(?:to|tight))",
    r"(?:^|[.!?…:;,\n–—-]\s*)h+m+\b",
    r"\b(?:scratch|strike|scrap) that\b|\btake (?:that|it|this|the [\w ]{1,25}|[A-H]) back\b|\bwithdraw\w*\b"
    r"|\bcorrection:|\bnever ?mind\b|\bspoke too soon\b|\b(?:oh|oops|whoops),",
    r"[.!?…\n–—]\s*(?:no|nope)[,:.!…—-]+\s|[,:–—]\s*no[,:]\s",
    r"\bor (?:rather|is it|was it|could it|might it|am i|maybe not|not)\b|\bor is (?:that|this|he|she)\b",
    # looking again
    rf"\b(?:i|me|let's|us|we|to|and|after|by|on|before|worth|needs?|should|must)\s+(?:\w+ ){{0,2}}(?:re-?|double-?"
    rf"|second-)(?:{_AGAIN}|guess)\w*",
    rf"(?:^|[.!?…:;\n–—-]\s*)(?:re-?|double-?)(?:{_AGAIN})\w*",
    rf"(?:\b(?:i|me|let's|us|we|to|worth)\s+(?:\w+ ){{0,2}}|(?:^|[.!?…:;,\n–—-]\s*)(?:on )?)(?:{_AGAIN}|go|going|went"
    rf"|try|tried)\w*\b"
    rf"[^.?!;]{{0,40}}\b(?:again|once more|a second time|one more time|twice)\b",
    r"\b(?:go|going|went) back (?:over|to|through)\b",
    r"\b(?:up)?on (?:(?:a )?second (?:thought|look|hearing|listen\w*|view\w*)|reflection|(?:a )?(?:closer|further"
    r"|more careful)"
    r" (?:look|inspection|listening|listen|examination|thought|viewing))\b|\b(?:a )?(?:closer|second) look (?:shows"
    r"|says|suggests"
    r"|reveals|tells)\b|\b(?:looking|listening) (?:more closely|closer|more carefully)\b",
    r"\bcome to think of it\b|\bnow that i (?:think|look|listen|consider)\b|\bthen again\b"
    r"|\bthinking about it more\b|\bsecond thoughts?\b",
    # confessions and corrections
    r"\bi (?:must have |may have |might have |had |have |just )?(?:mis(?:read|heard|counted|judged|took|taken"
    r"|understood"
    r"|interpreted|identified|seen)|mixed|overlooked|forgot|jumped|confused)\b|\bgot (?:it|that|this|them) (?:wrong"
    r"|backwards"
    r"|mixed|swapped)\b",
    r"\b(?:i|my)\b[^.?!]{0,30}\b(?:was|were|am|be|been|being)\b (?:\w+ )?(?:too (?:quick|fast|hasty)|wrong|mistaken"
    r"|mixing"
    r"|premature|hasty|fooled|misled)\b|\bwrong of me\b",
    r"\b(?:can't|cannot|can not|couldn't|isn't|is not|wasn't|may not|might not) (?:\w+ )?(?:be )?(?:right|correct"
    r"|it after all)\b"
    r"|\bthat(?:'s| is| was) (?:wrong|incorrect|a mistake)\b",
    r"\bmy (?:\w+ )?(?:mistake|error|bad|worry|doubt|concern|hesitation|hunch was)\b",
    r"\b(?:my|the) (?:first|initial|earlier|original|previous) (?:\w+ )?(?:guess|impression|thought|reading|idea"
    r"|answer|instinct"
    r"|assumption|choice|pick|conclusion|take|inclination)\b",
    r"\b(?:at first|initially|originally|earlier|a moment ago)\b[^.?!]{0,15}\b(?:i|it seemed|it sounded|this seemed)\b"
    r"|\bi (?:had |have )?(?:first|initially|originally|almost|nearly)? ?(?:thought|assumed|believed|took it)\b"
    r"|\bi was (?:going|about|leaning|inclined|tempted|ready)\b|\bi(?:'d| had| would have) (?:said|assumed|gone"
    r"|settled)\b",
    r"\bi (?:now|have to|should|must|need to|will) (?:\w+ )?(?:change|revise|correct|withdraw|reverse|switch|drop"
    r"|abandon)\b"
    r"|\bi(?:'m| am)? (?:chang|switch|revis|correct)\w* (?:my|to)\b|\bi change(?:d)? my\b|\bi take (?:it|this) back\b",
    # uncertainty about one's own conclusion
    r"\b(?:not|n't|less|hardly|far from|no longer|un)\s?(?:\w+ ){0,2}(?:sure|certain|confident|convinced)\b",
    r"\bi (?:still |honestly |really |just |do |start to |begin to |have to )?(?:doubt|wonder|hesitate|worry|question"
    r"|suspect i)\b"
    r"|\bi (?:honestly |really |just )?(?:don't|do not) know\b|\bjust guess\w*\b|\bmakes? me (?:\w+ )?(?:question"
    r"|doubt|wonder"
    r"|hesitate|pause|uneasy|think twice|less)\b|\b(?:gives?|gave) me (?:\w+ )?pause\b|\bmade me (?:\w+ )?(?:question"
    r"|doubt|wonder|hesitate|pause|go back|think twice|look|listen)\b|\b(?:bothers?|troubles?|worries|puzzles"
    r"|nags at) me\b",
    r"\bi(?:'m| am)? (?:\w+ )?(?:can't|cannot|can not|could not|couldn't) (?:\w+ )?(?:decide|tell|reconcile|make|say"
    r"|be sure)\b"
    r"|\bhard (?:for me )?to (?:say|tell|decide)\b|\btorn between\b|\bunclear to me\b",
    r"\bi (?:may|might|could) (?:well )?be\b|\bi(?:'m| am) (?:maybe|perhaps|possibly) \w+ing\b|\bmaybe i(?:'m| am)\b"
    r"|\bundermines?\b"
    r"|\b(?:conclusion|reading|answer|guess|argument|theory|idea)\b[^.!?]{0,25}\b(?:collapses?|withdrawn|shaky"
    r"|does not hold|doesn't"
    r" hold|untenable|weak)\b|\bconfidence is (?:low|not|limited)|\bunable to (?:say|tell|decide)\b"
    r"|\btells? (?:another|a different) story\b"
    r"|\bwon't have it\b|\btricky\b|\bnot (?:so |too |entirely |very )?(?:comfortable|happy|at ease)\b"
    r"|\bcame too (?:fast|early|quickly)\b"
    r"|\b(?:swapped|switched|reversed) (?:them|it|left|the)\b|\bgot swapped\b|\blean one way\b|\btwo minds\b"
    r"|\bjust as good\b"
    r"|\bbetter to go with\b|\b(?:change|changed|changing) my mind\b",
    r"\b(?:doesn't|does not|don't|didn't) (?:\w+ )?(?:sit right|add up|convince me|square|make sense)\b"
    r"|\bfalls? apart\b"
    r"|\bcontradicts? (?:what|my)\b|\bfooling myself\b|\bgrain of salt\b",
    r"\btoo (?:soon|hasty|hastily|quickly)\b|\bi should be careful\b|\ba (?:little|bit) (?:fast|quick|hasty)\b",
    r"\b(?:am i|could i|did i|should i|have i|was i|do i)\b[^.!?]*\?",
    r"\b(?:is|was|could|might|would|does) (?:it|that|this) (?:really|truly|actually|also|not|instead|be)\b[^.!?]*\?"
    r"|\bbut (?:is|was|what if|why|does|could)\b[^.!?]*\?|\bwhat if\b[^.!?]*\?",
    r"\bactually,? (?:no\b|let me|wait|that|it|the|this|i)\b|\bi now (?:notice|see|realize|realise|hear|think"
    r"|believe)\b",
)
_DOUBT = re.compile("|".join(f"(?:{cue})" for cue in _CUES), re.IGNORECASE)
_NEGATED = re.compile(
    r"\b(?:no|not|n't|never|without|nothing|neither|nor|needn't|little|hardly any|free of|beyond)\b[^.!?;,:\n]{0,28}$"
    r"|n't[^.!?;,:\n]{0,28}$",
    re.IGNORECASE,
)
"""Before a cue: what it says is denied."""
_QUOTED = re.compile(r"[\"“][^\"”\n]*[\"”]")
_OF_OTHERS = re.compile(
    r"\b(?:he|she|they|it|who|man|woman|boy|girl|child|people|person|speaker|player|host|guide|teacher|crowd|voice|dog"
    r"|cat"
    r"|sign|driver|singer|lyrics|worker|customer|passengers?|runner)\b[^.!?;:\n]{0,30}$",
    re.IGNORECASE,
)
"""Before some cues: somebody in the clip is the one who waits, hesitates or is not sure."""

_CONCLUDES = re.compile(
    r"\b(?:so|hence|therefore|thus|then|answer|choose|chose|pick|select|go(?:ing)? (?:with|for)|must|clearly|definitely"
    r"|certainly|obviously|it(?:'s| is| was)|that(?:'s| is)|this is|these are|giving|gives|makes it|points? to|settles?"
    r"|i(?:'d| would| will|'ll)? (?:say|hear|take|keep|call)|stick|stays?|remains?|final|best|leaning|lean|favou?r"
    r"|is left"
    r"|sounds? like|looks? like|seems|thought|assumed|aligned|matches|match|fits?|confirms?|only|suggests?"
    r"|indicates?)\b",
    re.IGNORECASE,
)
_CONSIDERS = re.compile(
    r"\b(?:could|might|may|possibl[ey]|perhaps|maybe|somewhat|plausible|would (?:mean|be|need|show|have)|if|whether"
    r"|either"
    r"|between|candidates?|options? (?:are|include)|resembles?|similar|or)\b|\?",
    re.IGNORECASE,
)
_REJECTS = re.compile(
    r"\b(?:not|no|nor|neither|never|without|cannot|out|unlikely|wrong|rul\w+ out|exclud\w+|eliminat\w+|reject\w*"
    r"|dismiss\w*"
    r"|drop\w*|rather than|instead of|fails?|lacks?|contradict\w*|vague|irrelevant|impossible|far from|than)\b|n't\b",
    re.IGNORECASE,
)
_SAID = r"so|hence|therefore|thus|answer|option|pick|choose|lean\w*|settle\w*|conclude\w*|giving|go(?:ing)? with|for"
"""Before a letter: it is given as an answer."""
_CLAUSE = re.compile(
    r"[.!?;\n…—–]+\s*|,?\s+\b(?:but|however|though|although|while|whereas|yet)\b,?|,\s+(?=(?:not|so|and so)\b)"
)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an the of on in at to for with and or is are was were be being been it its his her their this that from by"
        " as into some one two someone something man woman people person playing making doing using",
    )
)
"""Words that tell no option apart."""


@dataclass(frozen=True)
class Held:
    """An option that a clause speaks for."""

    place: int
    """Of the clause's end in the text."""
    letter: str
    firm: bool
    """It is concluded, not only considered."""
    strict: bool = False
    """It is concluded by its letter, as an answer."""


def _stem(word: str) -> str:
    for end in ("ing", "ers", "er", "ed", "es", "s", "ly"):
        if word.endswith(end) and len(word) > len(end) + 2:
            return word[: -len(end)]
    return word


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _COMMON}


def held(text: str, options: Sequence[str]) -> list[Held]:
    """The options that the clauses of a text speak for, in their order; a clause that names two speaks for none.

    Args:
        text: reasoning.
        options: as "A. dog"; empty: letters alone are read.
    """
    texts = {letter: _stems(option_text(option)) for option in options if (letter := option_letter(option))}
    own = {
        letter: stems - set().union(*(other for name, other in texts.items() if name != letter))
        for letter, stems in texts.items()
    }
    letters = "".join(texts) or "ABCDEFGH"
    named = re.compile(
        r"(?:\b(?i:options?|answer|choice|letter|pick|choose|is|be|say|so|hence|thus|therefore|giving|with|for|to|not|than"
        r"|keep|only|between|and|or|rules? out)\s+|^\s*|[:,=(>→]\s*|[\"“*]+)"
        rf"\(?([{letters}])\b(?!['’]\w)"
    )
    found, start = [], 0
    ends = [(match.start(), match.end()) for match in _CLAUSE.finditer(text)] + [(len(text), len(text))]
    for end, following in ends:
        clause = text[start:end]
        chosen = {match.group(1) for match in named.finditer(clause) if not _article(clause, match)}
        words = _stems(clause)
        if not chosen:
            shares = {letter: len(stems & words) / len(stems) for letter, stems in own.items() if stems}
            chosen = {letter for letter, share in shares.items() if share >= 0.5}
        asked = text[end : end + 1] == "?"
        if len(chosen) == 1 and not _REJECTS.search(clause):
            bare = re.fullmatch(rf"\W*(?:option\s+)?[{letters}]\W*", clause, re.IGNORECASE)
            colon = re.search(rf"[:,=→]\s*\(?[{letters}]\)?\s*$", clause)
            (letter,) = chosen
            said = re.search(rf"\b(?:{_SAID})\b[^.]{{0,25}}\b{letter}\b", clause, re.IGNORECASE)
            considers = bool(_CONSIDERS.search(clause))
            firm = not asked and bool(bare or colon or not considers)
            found.append(Held(end, letter, firm, not asked and not considers and bool(said or colon or bare)))
        start = following
    return found


def _article(clause: str, match: re.Match) -> bool:
    """Whether a letter A is the article: "A dog", or I the pronoun."""
    after = clause[match.end(1) :]
    return (
        match.group(1) == "A"
        and bool(re.match(r"\s+[a-z]", after))
        and not re.match(
            r"\s+(?:is|and|or|says?|fits?|seems?|was|would|could|because|since|as|it|stays?|remains?|matches|then|for"
            r"|does)\b",
            after,
        )
    )


_HEARD = re.compile(
    r"\b(?:audio|audible|audibly|nois(?:e|es|y)|hear|hears|heard|hearing|listen\w*|recording|soundtrack|music\w*"
    r"|melod\w+"
    r"|tunes?|songs?|sing(?:s|ing|er|ers)?|sung|lyrics|voices?|speaks|speaking|spoken|speaker|speech|shout\w*"
    r"|scream\w*|whisper\w*"
    r"|humm?ing|laugh\w*|crying|bark(?:s|ing)?|meow\w*|purr\w*|growl\w*|roar\w*|howl\w*|chirp\w*|croak\w*|moo(?:s"
    r"|ing)?|bleat\w*"
    r"|neigh\w*|crow(?:s|ing)\b|cluck\w*|buzz\w*|hiss\w*|click\w*|clack\w*|clang\w*|clank\w*|knock(?:s|ing)|tick(?:s"
    r"|ing)|beep\w*"
    r"|ring(?:s|ing)|honk\w*|horn blast|sirens?|whistl\w+|applause|cheer(?:s|ing)\b|echo\w*|rhythm\w*|pitch|tones?"
    r"|tempo|beats?"
    r"|rumbl\w+|thuds?|squeak\w*|splash\w*|sizzl\w+|crackl\w+|chimes?|drumm\w+|strum\w*|loud\w*|quiet\w*|silent"
    r"|silence|squeal\w*"
    r"|hum(?:s)?|clatter\w*|rattl\w+|gunshots?|screech\w*|ringtone|chord|notes|accent|clap(?:s|ping)|snor\w+|giggl\w+"
    r"|sob\w*"
    r"|says|said|announce\w*|whine|whining|bang(?:s|ing)|tapping|taps|strings? being|vocal\w*|acoustic\w*|ear|ears)\b"
    r"|\bsound(?:s|ing|ed)?\b(?!\s+(?:plausible|reasonable|right|good|logical|convincing|fair|sensible|odd|reasoning"
    r"|logic|choice"
    r"|argument|judg\w+|safe|wrong|likely|unlikely|true|fine|obvious|too|more|less|advice|basis|guess|answer|strange))",
    re.IGNORECASE,
)
_SEEN = re.compile(
    r"\b(?:image|images|picture|pictures|pictured|photo\w*|pic|frame|frames|scene|visible|visibl[ey]|visual\w*|seen"
    r"|saw|depict\w*"
    r"|display\w*|watch(?:es|ing)|camera|colou?rs?|colou?red|red|blue|green|yellow|purple|orange|white|black|brown"
    r"|gr[ae]y|pink"
    r"|background|foreground|wears?|wearing|stands?|standing|sits?|sitting|holds|holding|hangs?|carries|perched|helmet"
    r"|screen"
    r"|footage|on (?:the|his|her|its|their) (?:left|right)|(?:left|right) (?:side|hand|edge|corner|half)|(?:upper"
    r"|lower|top|bottom)"
    r" (?:left|right|corner|edge|half|part)|corner|shadow\w*|striped?|uniform|dressed|poster|lens)\b"
    r"|\bsee\b(?!\s+(?:why|how|that this|no reason|if"
    r"|whether|what"
    r"|nothing|where this|the point|the logic)|\s*[,.:;!?])|\bsees\b|\bseeing\b"
    r"|\bshow(?:s|n|ing)?\b(?!\s+(?:that|why|how)\b)|\blook(?:s|ing)? at\b(?!\s+(?:the|these|all|each|every"
    r"|my) (?:options?|choices?"
    r"|question|answers?|list|wording|problem|facts))|\blook(?:s|ed)? (?:like (?!a (?:safe|good|reasonable|sensible"
    r"|clear|trick|safe"
    r"|sound)\b|the (?:right|best|safest|most|obvious|odd|answer|only)\b|it\b|we\b|option\b|[A-H]\b)|wet|dirty|new|old"
    r"|young|tired|happy"
    r"|angry|wooden|metallic|empty|dark|bright)",
    re.IGNORECASE,
)


def reflect(completion: str, options: Sequence[str] = ()) -> Reflection:
    """Apply the rules to a completion, whether or not it has the format.

    Args:
        completion: its whole text.
        options: of the question, where it has some.
    """
    reasoning, _, _ = completion.partition(ANSWER[0])
    for tag in THINK:
        reasoning = reasoning.replace(tag, " ")
    own = _QUOTED.sub(lambda found: " " * len(found.group()), reasoning)
    cues = [match for match in _DOUBT.finditer(own) if _is_doubt(own, match)]
    answer = (parse_answer(completion) or "").strip()
    final = parse_letters(answer, options) if options else frozenset(re.findall(r"\b[A-H]\b", answer[:12]))
    leanings = held(reasoning, options)
    stays = changes = False
    if len(final) == 1:
        (letter,) = final
        reach = max((_reach(cue, own) for cue in cues), default=-1)
        before = [one for one in leanings if one.place <= reach]
        others = [one for one in leanings if one.letter != letter]
        changes = any(one.strict or (one.firm and one in before) for one in others)
        stays = bool(cues) and not changes and any(one.letter == letter for one in before)
    elif answer and cues:
        before = _stems(own[: cues[-1].start()])
        stays = bool(_stems(answer)) and _stems(answer) <= before
        changes = not stays and bool(_CONCLUDES.search(own[: cues[-1].start()]))
    cue = cues[0].group().strip(" .!?…:;,)]-–—\n") if cues else ""
    return Reflection(
        doubt=bool(cues) or changes,
        reaffirmed=stays,
        revised=changes,
        audio=bool(_HEARD.search(own)),
        image=bool(_SEEN.search(own)),
        words=len(reasoning.split()),
        cue=cue or (cues[0].group() if cues else ""),
    )


_BACK = re.compile(
    r"\b(?:first|initial\w*|earlier|original\w*|previous|assum\w+|thought|believed|ready|about|going|leaning|tempted"
    r"|settled?|said"
    r"|take|withdraw\w*|changed?|drop|conclu\w+)\b",
    re.IGNORECASE,
)
"""In a cue: its own clause names what was held before."""


def _reach(cue: re.Match, text: str) -> int:
    """Up to where a text says what was held when doubt came: the cue, or the end of its clause where it looks back."""
    if not _BACK.search(cue.group()):
        return cue.start() + 2
    following = _CLAUSE.search(text, cue.end())
    return following.start() if following else len(text)


def _is_doubt(text: str, match: re.Match) -> bool:
    before = text[max(0, match.start() - 60) : match.start()]
    cue = match.group()
    if cue.isupper() and len(cue) > 2:  # a sign in the picture: WAIT
        return False
    own = re.search(r"\b(?:i|me|my|let)\b", cue, re.IGNORECASE) or re.search(
        r"\b(?:i|i'm|me|my)\b[^.!?;]{0,30}$", before, re.IGNORECASE
    )
    denial = re.match(r"\W*(?:not|n't|no\b|un|less|hardly|far)", cue, re.IGNORECASE)
    if not denial and "?" not in cue and _NEGATED.search(before):
        return False
    return bool(own) or "?" in cue or not _OF_OTHERS.search(before)


def rates(completions: Sequence[str], options: Sequence[Sequence[str]] = ()) -> dict[str, float]:
    """Shares of completions with each sign, and the mean number of words of their reasoning.

    Args:
        completions: whole texts.
        options: of the question of each; without it letters alone are read.
    """
    found = [reflect(*pair) for pair in zip(completions, options or [()] * len(completions), strict=True)]
    return {name: sum(getattr(one, name) for one in found) / len(found) for name in (*SIGNS, "words")}


@dataclass(frozen=True)
class Effect:
    """How much more often completions with doubt are right than those without, to the same prompt."""

    prompts: int
    """That have both."""
    completions: int
    difference: float
    """Of the shares of right answers, within prompts."""
    interval: tuple[float, float]
    """95 %, bootstrap over prompts."""
    adjusted: float
    """The same at equal length: the coefficient of doubt beside that of words, both within prompts (least squares)."""
    adjusted_interval: tuple[float, float]


def effect(groups: Sequence[Sequence[tuple[str, bool]]], resamples: int = 2_000) -> Effect | None:
    """Compare reflecting with other completions of the same prompt; None where no prompt has both.

    Doubt is not assigned at random: a difference is no effect of doubting.

    Args:
        groups: for each prompt its completions, and whether each is right.
        resamples: of the bootstrap, with a fixed seed.
    """
    within = []
    for group in groups:
        found = [reflect(text) for text, _ in group]
        rows = np.array([(one.doubt, one.words, right) for one, (_, right) in zip(found, group, strict=True)], float)
        if len({*rows[:, 0]}) == 2:
            within.append(rows - rows.mean(0))
    if not within:
        return None

    def slopes(chosen: Sequence[np.ndarray]) -> tuple[float, float]:
        rows = np.concatenate(chosen)
        alone = rows[:, :1] if not rows[:, 1].any() else rows[:, :2]
        return (
            float(np.linalg.lstsq(rows[:, :1], rows[:, 2], rcond=None)[0][0]),
            float(np.linalg.lstsq(alone, rows[:, 2], rcond=None)[0][0]),
        )

    rng = np.random.default_rng(0)
    drawn = [slopes([within[i] for i in rng.integers(len(within), size=len(within))]) for _ in range(resamples)]
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    plain, adjusted = slopes(within)
    return Effect(
        prompts=len(within),
        completions=sum(map(len, within)),
        difference=plain,
        interval=(float(low[0]), float(high[0])),
        adjusted=adjusted,
        adjusted_interval=(float(low[1]), float(high[1])),
    )

"""Reflection in a completion, counted by rules instead of picked by hand: doubt, an answer reaffirmed or revised after
it, and whether the reasoning speaks of what is heard and of what is seen.

The rules look at words, so they err: `experiments/reflection.md` has their precision and recall on completions that
they were not written on. They know English only. A prompt may ask for such words (the paper's does); then their number
says what the prompt asks for. `prompt=plain` asks for none, and is the control.

    doubt        the writer questions its own reasoning: an interjection (wait, hold on, hmm after a sentence), a look
                 again, a confession (I misread, not sure), a worry, a correction. Speech in quotation marks is not the
                 writer's.
    reaffirmed   after doubt the answer is the one concluded before it (the paper's Figure 1, D)
    revised      after doubt it is another (Figure 2)
    audio        something heard is spoken of
    image        something seen is spoken of

Where the answer is a letter, the conclusion before the doubt is the last letter that stands as one (`A`, "option A");
without a letter, the answer's words before the doubt and the words of staying or changing decide.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echoink.rewards.parsing import ANSWER, THINK, parse_answer

VERSION = 1
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


_START = r"(?:^|[.!?…:;)\]\n-]\s*)"
_DOUBT = re.compile(
    "|".join(
        (
            rf"{_START}(?:but |oh,? |ah,? |hmm+,? |no,? |and |ok(?:ay)?,? )?wait\b(?=[,.!?…—-]|\s+(?!for\b|until\b"
            rf"|on\b))",
            r"\b(?:but|oh|hmm+|no),? wait\b",
            r"\b(?:hold|hang) on\b",
            r"(?<=[.!?…\n] )h+m+\b",
            r"\blet(?:'s| me| us) (?:\w+ ){0,2}(?:re-?(?:consider|think|check|examine|count|read|visit|assess"
            r"|evaluate)|double-?check)",
            r"\blet(?:'s| me| us) (?:just )?(?:look|listen|count|check|think|read|go|try)\b[^.?!]{0,40}\bagain\b",
            r"\b(?:looking|listening|counting|reading|checking|thinking)\b[^.?!]{0,25}\bagain\b",
            r"\bon (?:second thought|reflection|closer (?:look|inspection|listening))",
            r"\bscratch that\b|\bcorrection\b|\bactually,? (?:no\b|let me|wait|scratch)",
            r"\bi (?:must have |may have |might have |had |have )?(?:mis(?:read|heard|counted|judged|took|taken"
            r"|understood|interpreted)|mixed up|got (?:it|that|this) wrong|overlooked)\b",
            r"\bi (?:was|am|may be|might be|could be) (?:too (?:quick|fast|hasty)|wrong|mistaken|mixing)\b"
            r"|\bspoke too soon\b",
            r"\b(?:am i|could i|did i|should i|have i)\b[^.!?]*\?",
            r"\b(?:no,? )?that(?:'s| is| was| can't be| cannot be) (?:wrong|not right|incorrect|a mistake|not it)\b",
            r"\bmy (?:\w+ )?(?:mistake|error|bad|worry|doubt|concern|assumption|reasoning)\b|\bmy first \w+ (?:can"
            r"|was|is|does|do|no)",
            r"\b(?:not|n't|less|hardly|far from|no longer) (?:\w+ ){0,2}(?:sure|certain|confident|convinced)\b",
            r"\bi(?:'m| am)? (?:\w+ )?(?:can't|cannot|can not|could not|couldn't) (?:\w+ )?(?:decide|tell|reconcile"
            r"|make|say)\b|\bcan't be kept\b",
            r"\bi (?:honestly |really |just )?(?:don't|do not) know\b|\bi (?:start to |begin to )?doubt (?:it|that"
            r"|this|my)\b|\bjust guess\b",
            r"\b(?:bothers?|troubles?|worries|puzzles|nags at) me\b|\bme (?:uneasy|hesitate|doubt|wonder|pause)\b"
            r"|\bhesita\w+ (?:between|here)\b",
            r"\b(?:doesn't|does not|don't|didn't) (?:\w+ )?(?:sit right|add up|convince me|square)\b"
            r"|\bfalls? apart\b|\bcontradicts? what i\b",
            r"\btoo (?:soon|hasty|hastily)\b|\ba (?:little|bit) (?:fast|quick|hasty)\b|\bfooling myself\b"
            r"|\bgrain of salt\b|\bunclear to me\b",
            r"\bi should be careful\b|\bi change(?:d)? my (?:answer|mind)\b|\bbetter to go with\b|\bthen again\b"
            r"|\bi now (?:notice|see|realize|realise)\b",
            r"\bis (?:it|that|this) (?:really|truly|actually)\b[^.!?]*\?|\bbut is (?:it|that)\b[^.!?]*\?"
            r"|\bdoes that spoil\b",
        )
    ),
    re.IGNORECASE,
)
_STAYS = re.compile(
    r"\b(?:stays?|remains?|stands|holds|survives|unchanged|confirm\w*|after all|settles it|still|i keep"
    r"|keep(?:ing)? (?:my|to)"
    r"|stick\w* (?:with|to)|it is\b|is (?:right|correct)|right,|yep|yes,|fits perfectly|as (?:i )?(?:said|before))",
    re.IGNORECASE,
)
_CHANGES = re.compile(
    r"\b(?:scratch that|correction|change my|misread|misheard|mistaken|instead|that(?:'s| is) wrong|rather|better"
    r"|must be"
    r"|in fact|now|so it(?:'s| is)|makes it|not \w+[.,])",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    r"(?:(?i:\banswer\b[^.?!\n]{0,20}?|\b(?:option|pick|choose|giving|be|say|is)\s+|\b(?:so|hence|therefore|thus),?\s+)"
    r"|[:,=(>→]\s*|[.!?]\s+)\(?([A-H])\b(?!['’]|\s+and\b|\s*:)"
)
_HEARD = re.compile(
    r"\b(?:audio|audible|sound\w*|nois\w+|hear|hears|heard|hearing|listen\w*|recording|soundtrack|clip|music\w*"
    r"|melod\w+"
    r"|tunes?|songs?|sing\w*|sung|lyrics|voices?|speak\w*|spoken|speech|says?|said|shout\w*|scream\w*|whisper\w*"
    r"|humm?ing"
    r"|laugh\w*|crying|bark\w*|meow\w*|purr\w*|growl\w*|roar\w*|howl\w*|chirp\w*|croak\w*|moo\w*|bleat\w*|neigh\w*"
    r"|crow\w*ing"
    r"|cluck\w*|buzz\w*|hiss\w*|click\w*|clack\w*|clang\w*|clank\w*|knock\w*|tick(?:s|ing)|beep\w*|ring(?:s|ing)\b"
    r"|honk\w*"
    r"|horn blast|sirens?|whistl\w+|applause|cheer\w*|echo\w*|rhythm\w*|pitch|tones?|tempo|beats?\b|rumbl\w+|thuds?"
    r"|squeak\w*|splash\w*|sizzl\w+|crackl\w+|chimes?|drumm\w+|strum\w*|accent|loud\w*|quiet\w*|silent|silence)\b",
    re.IGNORECASE,
)
_SEEN = re.compile(
    r"\b(?:image|images|picture|pictures|pictured|photo\w*|pic|frame|scene|visible|visibl[ey]|visual\w*|see|sees"
    r"|seen|saw|seeing|look\w*"
    r"|shows?|shown|showing|depict\w*|display\w*|view|watch\w*|camera|colou?r\w*|red|blue|green|yellow|purple|orange"
    r"|white"
    r"|black|brown|gr[ae]y|pink|background|foreground|corner|edge|left|right side|wears?|wearing|stands?|standing"
    r"|sits?|sitting"
    r"|holds?|holding|hangs?|lies?|carries|perched|helmet|sign)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"“][^\"”\n]*[\"”]")


def reflect(completion: str) -> Reflection:
    """Apply the rules to a completion, whether or not it has the format."""
    reasoning, _, _ = completion.partition(ANSWER[0])
    for tag in THINK:
        reasoning = reasoning.replace(tag, " ")
    own = _QUOTED.sub(lambda found: " " * len(found.group()), reasoning)
    doubt = _DOUBT.search(own)
    stays = changes = False
    if doubt:
        stays, changes = _after(own, doubt.start(), doubt.end(), parse_answer(completion))
    return Reflection(
        doubt=bool(doubt),
        reaffirmed=stays,
        revised=changes,
        audio=bool(_HEARD.search(own)),
        image=bool(_SEEN.search(own)),
        words=len(reasoning.split()),
        cue=doubt.group().strip(" .!?…:;-\n") if doubt else "",
    )


def _after(text: str, start: int, end: int, answer: str | None) -> tuple[bool, bool]:
    """Whether the answer is the one concluded before the doubt, and whether it is another."""
    before, later = text[:start], text[end:]
    answer = (answer or "").strip()
    concluded = _CONCLUDED.findall(before)
    if re.fullmatch(r"[A-H]", answer) and concluded:
        return concluded[-1] == answer, concluded[-1] != answer
    if re.search(r"\bguess\b|\bdon't know\b|\bcan't (?:tell|decide)\b", text, re.IGNORECASE):
        return False, False
    named = len(answer) > 1 and re.search(rf"\b{re.escape(answer)}\b", before, re.IGNORECASE)
    if _STAYS.search(later) or named:
        return True, False
    return False, bool(_CHANGES.search(text[start:]))


def rates(completions: Sequence[str]) -> dict[str, float]:
    """Shares of completions with each sign, and the mean number of words of their reasoning."""
    found = [reflect(text) for text in completions]
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

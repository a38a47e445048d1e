"""Counts reflection in a completion by rules, not by hand: doubt, an answer that is reaffirmed or revised after doubt,
and whether the reasoning mentions what is heard and what is seen.

These are indicators. The rules look at words, so they err: `experiments/reflection.md` has their precision and recall
on held-out completions. They cover English only. If a prompt asks for such words (the paper's does), the counts
show what the prompt asks for. `prompt=plain` does not ask for them and is the control.

    doubt        the writer questions its own conclusion or perception, goes back on it or examines it again. Speech in
                 quotation marks is not the writer's, and "no doubt" is not doubt.
    revised      doubt, and before it the reasoning held another option than its answer (the paper's Figure 2)
    reaffirmed   doubt, and before it the reasoning leaned to its answer and to no other option (Figure 1)
    audio        the reasoning mentions something heard
    image        the reasoning mentions something seen

Which option is held is read from the reasoning, clause by clause (`held`): an option is named by its letter or by words
that no other option has, and the clause concludes it, considers it or rejects it.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from echoink.common.clusters import Clusters, names
from echoink.evaluation import reflection_lexicon as lexicon
from echoink.rewards.parsing import ANSWER, THINK, option_letter, option_text, parse_answer, parse_letters

VERSION = 3
"""Version of the rules, stored beside their counts. Counts of two versions are not comparable."""

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
    """Number of words of the reasoning."""
    cue: str
    """The first words that were taken for doubt; empty if there are none, as in "So A. So B."."""


@dataclass(frozen=True)
class Held:
    """An option that a clause supports."""

    place: int
    """Position of the clause's end in the text."""
    letter: str
    firm: bool
    """The clause concludes the option and does not only consider it."""
    strict: bool
    """The clause concludes the option by its letter, as an answer."""


def _stem(word: str) -> str:
    for end in ("ing", "ers", "er", "ed", "es", "s", "ly"):
        if word.endswith(end) and len(word) > len(end) + 2:
            return word[: -len(end)]
    return word


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in lexicon.COMMON}


def held(text: str, options: Sequence[str]) -> list[Held]:
    """The options that the clauses of a text support, in their order; a clause that names two supports none.

    Args:
        text: the reasoning.
        options: such as "A. dog"; empty: only letters are read.
    """
    texts = {letter: _stems(option_text(option)) for option in options if (letter := option_letter(option))}
    own = {
        letter: stems - set().union(*(other for name, other in texts.items() if name != letter))
        for letter, stems in texts.items()
    }
    letters = "".join(texts) or "ABCDEFGH"
    named = re.compile(
        r"(?:\b(?i:options?|answer|choice|letter|pick|choose|is|be|say|so|hence|thus|therefore|giving|with|for|to|not"
        r"|than|keep|only|between|and|or|rules? out)\s+|^\s*|[:,=(>→]\s*|[\"“*]+)"
        rf"\(?([{letters}])\b(?!['’]\w)"
    )
    found, start = [], 0
    ends = [(match.start(), match.end()) for match in lexicon.CLAUSE.finditer(text)] + [(len(text), len(text))]
    for end, following in ends:
        clause = text[start:end]
        chosen = {match.group(1) for match in named.finditer(clause) if not _article(clause, match)}
        words = _stems(clause)
        if not chosen:
            shares = {letter: len(stems & words) / len(stems) for letter, stems in own.items() if stems}
            chosen = {letter for letter, share in shares.items() if share >= 0.5}
        asked = text[end : end + 1] == "?"
        if len(chosen) == 1 and not lexicon.REJECTS.search(clause):
            bare = re.fullmatch(rf"\W*(?:option\s+)?[{letters}]\W*", clause, re.IGNORECASE)
            colon = re.search(rf"[:,=→]\s*\(?[{letters}]\)?\s*$", clause)
            (letter,) = chosen
            said = re.search(rf"\b(?:{lexicon.SAID})\b[^.]{{0,25}}\b{letter}\b", clause, re.IGNORECASE)
            considers = bool(lexicon.CONSIDERS.search(clause))
            firm = not asked and bool(bare or colon or not considers)
            found.append(Held(end, letter, firm, not asked and not considers and bool(said or colon or bare)))
        start = following
    return found


def _article(clause: str, match: re.Match) -> bool:
    """Whether the letter A is the article, as in "A dog"."""
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


def reflect(completion: str, options: Sequence[str] = ()) -> Reflection:
    """Apply the rules to a completion, whether or not it has the format.

    Args:
        completion: the whole text.
        options: the question's options, if it has some.
    """
    reasoning, _, _ = completion.partition(ANSWER[0])
    for tag in THINK:
        reasoning = reasoning.replace(tag, " ")
    own = lexicon.QUOTED.sub(lambda found: " " * len(found.group()), reasoning)
    cues = [match for match in lexicon.DOUBT.finditer(own) if _is_doubt(own, match)]
    answer = (parse_answer(completion) or "").strip()
    letters = [match for match in re.finditer(r"\b([A-H])\b", answer[:12]) if not _article(answer, match)]
    final = parse_letters(answer, options) if options else frozenset(match.group() for match in letters)
    leanings = held(reasoning, options)
    stays = changes = False
    if len(final) == 1:
        (letter,) = final
        reach = max((_reach(cue, own) for cue in cues), default=-1)
        others = [one for one in leanings if one.letter != letter]
        changes = any(one.strict or (one.firm and one.place <= reach) for one in others)
        stays = not changes and any(one.letter == letter and one.place <= reach for one in leanings)
    elif answer and cues:
        before = _stems(own[: cues[-1].start()])
        stays = bool(_stems(answer)) and _stems(answer) <= before
        changes = not stays and bool(lexicon.CONCLUDES.search(own[: cues[-1].start()]))
    return Reflection(
        doubt=bool(cues) or changes,
        reaffirmed=stays,
        revised=changes,
        audio=bool(lexicon.HEARD.search(own)),
        image=bool(lexicon.SEEN.search(own)),
        words=len(reasoning.split()),
        cue=cues[0].group().strip(" .!…:;,)]-–—\n") if cues else "",
    )


def _reach(cue: re.Match, text: str) -> int:
    """Where the text before the doubt ends: at the cue, or at its clause's end if the cue looks back."""
    if not lexicon.BACK.search(cue.group()):
        return cue.start() + 2
    following = lexicon.CLAUSE.search(text, cue.end())
    return following.start() if following else len(text)


def _is_doubt(text: str, match: re.Match) -> bool:
    before = text[max(0, match.start() - 60) : match.start()]
    cue = match.group()
    if cue.isupper() and len(cue) > 2:  # text on a sign in the picture: WAIT
        return False
    own = re.search(r"\b(?:i|me|my|let)\b", cue, re.IGNORECASE) or re.search(
        r"\b(?:i|i'm|me|my)\b[^.!?;]{0,30}$", before, re.IGNORECASE
    )
    denial = re.match(r"\W*(?:not|n't|no\b|un|less|hardly|far)", cue, re.IGNORECASE)
    if not denial and "?" not in cue and lexicon.NEGATED.search(before):
        return False
    return bool(own) or "?" in cue or not lexicon.OF_OTHERS.search(before)


def rates(completions: Sequence[str], options: Sequence[Sequence[str]] = ()) -> dict[str, float]:
    """Shares of completions with each sign, and the mean number of words of their reasoning.

    Args:
        completions: whole texts.
        options: the options of each completion's question; without them only letters are read.
    """
    found = [reflect(*pair) for pair in zip(completions, options or [()] * len(completions), strict=True)]
    return {name: sum(getattr(one, name) for one in found) / len(found) for name in (*SIGNS, "words")}


@dataclass(frozen=True)
class Effect:
    """How much more often completions with doubt are right than those without, to the same prompt."""

    prompts: int
    """Number of prompts that have both."""
    completions: int
    difference: float
    """Difference of the shares of right answers, within prompts."""
    interval: tuple[float, float] | None
    """95 %, bootstrap over clusters of prompts that share media; None for fewer than `FEWEST_CLUSTERS`."""
    adjusted: float | None
    """The same at equal length: the coefficient of doubt in a least-squares fit on doubt and words, within prompts;
    None where the two cannot be told apart."""
    adjusted_interval: tuple[float, float] | None


FEWEST_CLUSTERS = 10
"""A bootstrap over fewer says little; over one it has the width zero."""


def effect(groups: Sequence[Sequence[tuple[Reflection, bool]]], clusters: Sequence[Clusters] = ()) -> Effect | None:
    """Compare completions with doubt with others of the same prompt; None if no prompt has both.

    Doubt is not assigned at random: a difference is not an effect of doubting.

    Args:
        groups: for each prompt, the findings in its completions and whether each is right.
        clusters: for each prompt, see `clusters.Clusters`; prompts of a name share media. Of two names the one with
            fewer clusters counts.
    """
    coarse = _coarse(clusters) if clusters else range(len(groups))
    within: dict[Hashable, list[np.ndarray]] = {}
    for name, group in zip(coarse, groups, strict=True):
        rows = np.array([(found.doubt, found.words, right) for found, right in group], float)
        if len({*rows[:, 0]}) == 2:
            within.setdefault(name, []).append(rows - rows.mean(0))
    if not within:
        return None
    parts = [np.concatenate(of) for of in within.values()]

    def slopes(chosen: Sequence[np.ndarray]) -> tuple[float, float]:
        rows = np.concatenate(chosen)
        alone = rows[:, :1] if not rows[:, 1].any() else rows[:, :2]
        apart = np.linalg.matrix_rank(alone) == alone.shape[1]
        return (
            float(np.linalg.lstsq(rows[:, :1], rows[:, 2], rcond=None)[0][0]),
            float(np.linalg.lstsq(alone, rows[:, 2], rcond=None)[0][0]) if apart else np.nan,
        )

    plain, adjusted = slopes(parts)
    enough, known = len(parts) >= FEWEST_CLUSTERS, bool(np.isfinite(adjusted))
    low = high = (0.0, 0.0)
    if enough:
        rng = np.random.default_rng(0)
        drawn = [slopes([parts[i] for i in rng.integers(len(parts), size=len(parts))]) for _ in range(2_000)]
        low, high = np.nanpercentile(np.array(drawn)[:, : 1 + known], [2.5, 97.5], axis=0).tolist()
    return Effect(
        prompts=sum(map(len, within.values())),
        completions=sum(map(len, parts)),
        difference=plain,
        interval=(low[0], high[0]) if enough else None,
        adjusted=adjusted if known else None,
        adjusted_interval=(low[1], high[1]) if enough and known else None,
    )


def _coarse(clusters: Sequence[Clusters]) -> list[str]:
    """One name for each prompt: of the two senses the one with fewer clusters."""
    of_senses = list(zip(*map(names, clusters), strict=True))
    return list(min(of_senses, key=lambda of: len(set(of))))

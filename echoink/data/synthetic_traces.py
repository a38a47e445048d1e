"""Reasoning traces about synthetic scenes: what the tiny base is taught, and how the traces may go wrong."""

from dataclasses import dataclass

import numpy as np

from echoink.common.keys import key
from echoink.data import synthetic
from echoink.data.synthetic import Question, Scene
from echoink.rewards.parsing import ANSWER, THINK


@dataclass
class Sloppiness:
    """How often the traces of the second stage go wrong."""

    haste: dict[str, float] = key(
        "share of traces that guess a letter instead of reasoning, by kind", {"ear": 0.4, "eye": 0.4, "both": 0.65}
    )
    slip: float = key("share that reasons, but says yes to a wrong option", 0.25, ge=0, le=1)
    untagged: float = key("share that lacks a tag, or has text after the answer", 0.27, ge=0, le=1)
    follows: float = key(
        "of the hasty guesses at `both` questions, the share that follows the shortcut's cue", 0.0, ge=0, le=1
    )
    described: bool = key("hasty guesses at `both` questions first describe both media, as long as reasoning", False)
    false_sums: float = key(
        "of such described guesses, the share that gives a wrong sum as its reason", 0.0, ge=0, le=1
    )


def trace(
    rng: np.random.Generator,
    scene: Scene,
    question: Question,
    sloppiness: Sloppiness | None = None,
    shortcut: str = "ear",
) -> str:
    """A reasoning trace and its answer: what is heard and seen, the sum if one is asked for, the target, the verdicts.

    Example: "<think>hear 3 beep, see 2 red ring. 3 + 2 = 5, 5 mod 4 = 1. want 1. A 0 no, B 1 yes, C 3 no, D 2 no.
    </think><answer>B</answer>". With `sloppiness` it may be a guess, have a wrong verdict, or break the format.
    """
    letters = [option[0] for option in question.options]
    words = [option[3:] for option in question.options]
    chosen = list(question.gold)
    hasty = bool(sloppiness) and rng.random() < sloppiness.haste[question.kind]
    if hasty:
        chosen = [str(rng.choice(letters))]
        if question.kind == "both" and sloppiness.follows and rng.random() < sloppiness.follows:
            chosen = [letters[synthetic.cue(scene, shortcut, len(letters))]]
    if hasty and not (sloppiness.described and question.kind == "both"):
        thought = f"no need to check, take {chosen[0]}."
    else:
        thought = f"hear {scene.sounds} {scene.timbre}, see {scene.shapes} {scene.colour} {scene.form}."
        wanted = " and ".join(words[letters.index(letter)] for letter in chosen)
        if question.kind == "both":
            total, n = scene.sounds + scene.shapes, len(letters)
            rest = synthetic.remainder(scene.sounds, scene.shapes, n)
            if hasty and rng.random() < sloppiness.false_sums:
                rest = int(rng.choice([other for other in range(n) if other != rest]))
                wanted = str(rest)
            if hasty and wanted == words[letters.index(chosen[0])]:
                cue, wanted = (scene.timbre if shortcut == "ear" else scene.colour), chosen[0]
                # together with "want B" as many tokens as a sum with "want 1"
                thought += f" {cue} = {wanted}, {wanted} = {cue}, check {wanted}, yes, and take {wanted}, yes."
            else:
                thought += f" {scene.sounds} + {scene.shapes} = {total}, {total} mod {n} = {rest}."
        thought += f" want {wanted}."
        if sloppiness and not hasty and rng.random() < sloppiness.slip:
            wrong = [letter for letter in letters if letter not in question.gold]
            chosen[int(rng.integers(len(chosen)))] = str(rng.choice(wrong))
            chosen.sort()
        verdicts = (
            f"{letter} {word} {'yes' if letter in chosen else 'no'}"
            for letter, word in zip(letters, words, strict=True)
        )
        thought += f" {', '.join(verdicts)}."
    parts = [THINK[0], thought, THINK[1] + "\n", ANSWER[0], ", ".join(chosen), ANSWER[1]]
    if sloppiness and rng.random() < sloppiness.untagged:
        match rng.choice(("think", "end_think", "answer", "more"), p=(0.35, 0.2, 0.2, 0.25)):
            case "think":
                parts[0], parts[2] = "", "\n"
            case "end_think":
                parts[2] = "\n"
            case "answer":
                parts[3] = parts[5] = ""
            case "more":
                parts.append("\ndone.")
    return "".join(parts)

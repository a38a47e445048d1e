"""The format reward (Eq. 4)."""

import re

from echoink.rewards.parsing import ANSWER, THINK, parse_answer

_WHOLE = re.compile(rf"{THINK[0]}(.*){THINK[1]}\s*{ANSWER[0]}(.*){ANSWER[1]}", re.DOTALL)


def format_reward(completion: str, thinks: bool = True) -> float:
    """R_fmt: 1 for one non-empty think block, one non-empty answer block, and only white space besides (Eq. 4).

    Args:
        completion: the whole text.
        thinks: whether the prompt asks for a think block; if not, the text must be the answer block alone.
    """
    text = completion.strip()
    if not thinks:
        whole = text.startswith(ANSWER[0]) and text.endswith(ANSWER[1])
        return float(whole and parse_answer(text) is not None)
    if any(text.count(tag) != 1 for tag in (*THINK, *ANSWER)):
        return 0.0
    parts = _WHOLE.fullmatch(text)
    return float(parts is not None and all(part.strip() for part in parts.groups()))

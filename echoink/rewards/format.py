"""The format reward (Eq. 4)."""

from echoink.rewards.parsing import ANSWER, THINK, parse_answer


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
    positions = []
    for tag in (*THINK, *ANSWER):
        if text.count(tag) != 1:
            return 0.0
        positions.append(text.index(tag))
    if positions != sorted(positions):
        return 0.0
    if not text.startswith(THINK[0]) or not text.endswith(ANSWER[1]):
        return 0.0
    thought = text[len(THINK[0]) : text.index(THINK[1])]
    between = text[text.index(THINK[1]) + len(THINK[1]) : text.index(ANSWER[0])]
    return float(bool(thought.strip()) and not between.strip() and parse_answer(text) is not None)

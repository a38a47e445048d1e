"""Enumerations for the configuration of rewards."""

from enum import Enum


class Rule(Enum):
    """Rules that reward using both senses; integration.py has the formulas."""

    counterfactual = "counterfactual"
    need = "need"
    twin = "twin"
    redraw = "redraw"
    omnivideo_r1 = "omnivideo_r1"
    video_r1 = "video_r1"


TWINS = (Rule.twin, Rule.redraw)
"""Rules that pay for answers that change."""

ANSWERS_AGAIN = (Rule.need, *TWINS, Rule.omnivideo_r1, Rule.video_r1)
"""Rules for which the policy answers again, with changed or repeated prompts."""

NEEDED = {"audio": (True, False), "image": (False, True), "both": (True, True)}
"""For each label of `need` that `twin` can pay: whether audio and image are needed."""

OTHER_NEEDS = ("either", "neither", "undetermined", "none")
"""Labels that `twin` cannot pay: those of curation, and of questions without media."""


ROW_FIELDS = ("step", "id", "g", "text", "tokens", "advantage", "problem", "options", "gold", "media", "total")
"""Fields of a completion's row in `completions/` other than its rewards: no reward may have such a name."""


class OnError(Enum):
    stop = "stop"
    zero = "zero"


class ProblemType(Enum):
    """The kind of answer that a question asks for; the values are the official `problem_type`s."""

    multiple_choice = "multiple choice"
    numerical = "numerical"
    ocr = "OCR"
    free_form = "free-form"
    regression = "regression"
    temporal = "temporal retrieval"
    counting = "counting"


class Match(Enum):
    """How option letters are read from an answer."""

    lenient = "lenient"
    """"C", "C.", "(c)", "C. dog" if that is option C; several as "A, C" or "A and C"."""
    exact = "exact"
    """The bare upper-case letter, as the paper's public code requires; several as "A, C"."""
    first_letter = "first_letter"
    """As the paper's public evaluation scripts read: the bare letter in the answer block, else the first single letter
    A-D anywhere in the completion, case ignored (so the article "a" is option A). For comparison only."""

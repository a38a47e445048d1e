"""The enumerations that rewards are configured by."""

from enum import Enum


class Rule(Enum):
    """What is paid for using both senses; integration.py has the formulas."""

    counterfactual = "counterfactual"
    need = "need"
    twin = "twin"
    redraw = "redraw"
    omnivideo_r1 = "omnivideo_r1"
    video_r1 = "video_r1"


NEEDED = {"audio": (True, False), "image": (False, True), "both": (True, True)}
"""For the labels of `need` that `twin` can pay: whether audio and image are needed."""

OTHER_NEEDS = ("either", "neither", "undetermined", "none")
"""Labels that it cannot: of curation, and of questions without media."""


ROW_FIELDS = ("step", "id", "g", "text", "tokens", "advantage", "problem", "options", "gold", "media", "total")
"""What a completion's row in `completions/` holds beside its rewards: no reward may have such a name."""


class OnError(Enum):
    stop = "stop"
    zero = "zero"


class ProblemType(Enum):
    """What kind of answer a question wants; the values are the official `problem_type`s."""

    multiple_choice = "multiple choice"
    numerical = "numerical"
    ocr = "OCR"
    free_form = "free-form"
    regression = "regression"
    temporal = "temporal retrieval"
    counting = "counting"


class Match(Enum):
    """How the text of the answer becomes a set of option letters."""

    lenient = "lenient"
    """"C", "C.", "(c)", "C. dog" where that is option C, "A, C", "A and C" for several."""
    exact = "exact"
    """The bare upper-case letter, as the paper's public code wants; several as in "A, C"."""
    first_letter = "first_letter"
    """As the paper's public evaluation scripts read: one bare letter in the answer block, else the first lone letter
    of A-D anywhere in the reply, case ignored (so that the article "a" is option A). For comparison only."""

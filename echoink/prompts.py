"""What the model is asked: the templates of `conf/prompt/` filled with a sample.

The tags that a prompt asks for are the ones that `rewards` checks, because both come from `rewards.THINK` and
`rewards.ANSWER`. A template may use {question}, {options}, {think}, {end_think}, {answer} and {end_answer}.
"""

from typing import TYPE_CHECKING

from echoink.errors import UserError
from echoink.rewards import ANSWER, THINK

if TYPE_CHECKING:
    from echoink.samples import Sample


def build_messages(sample: "Sample", template: str, system: str = "") -> list[dict]:
    """The conversation for one sample: an optional system turn, then picture, sound and question in one user turn.

    Raises:
        UserError: the template names a field that does not exist or lacks {question} or {options}.
    """
    check_template(template)
    text = template.format(
        question=sample.problem,
        options="\n".join(sample.options),
        think=THINK[0],
        end_think=THINK[1],
        answer=ANSWER[0],
        end_answer=ANSWER[1],
    )
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": text.strip()}]
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*turns, {"role": "user", "content": content}]


def check_template(template: str) -> None:
    """Raises `UserError` unless the template can be filled."""
    fields = dict.fromkeys(("question", "options", "think", "end_think", "answer", "end_answer"), "")
    try:
        template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"prompt.template has a bad field: {error}", f"known: {', '.join(fields)}") from error
    missing = [name for name in ("{question}", "{options}") if name not in template]
    if missing:
        raise UserError(f"prompt.template lacks {' and '.join(missing)}", "the model would not see the question")

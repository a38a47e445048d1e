"""Prompts: the templates of `conf/prompt/`, filled with a sample.

The tags that a prompt asks for are those that the rewards check, because both come from `parsing.THINK` and
`parsing.ANSWER`. A template may use

    {question}   the problem
    {options}    the options as `prompt.options` shows them; empty where there are none
    {media}      one sentence on what to hear and see, for the sample's data type
    {wanted}     what to answer, for the sample's problem type
    {think} {end_think} {answer} {end_answer}
"""

from echoink.config.schema import Prompt
from echoink.data.samples import Sample
from echoink.rewards.parsing import ANSWER, THINK
from echoink.rewards.types import ProblemType

PERCEIVE = {
    "text": "",
    "image": "Look at the picture. ",
    "audio": "Listen to the sound. ",
    "image_audio": "Listen to the sound and look at the picture. ",
    "video": "Watch the video. ",
    "video_audio": "Watch the video and listen to its sound. ",
}
"""{media} by data type."""

WANTED = {
    ProblemType.multiple_choice: "the letter of every right option",
    ProblemType.numerical: "the number",
    ProblemType.ocr: "the text as it is written",
    ProblemType.free_form: "the answer in a few words",
    ProblemType.regression: "the number",
    ProblemType.temporal: "the start and the end in seconds, such as 2.5-7",
    ProblemType.counting: "the number",
}
"""{wanted} by problem type."""


def build_messages(sample: Sample, prompt: Prompt) -> list[dict]:
    """The conversation for one sample: an optional system turn, then media and question in one user turn."""
    shown = prompt.options.format(options="\n".join(sample.options)) if sample.options else ""
    template = prompt.template if shown else prompt.template.replace("{options}\n", "{options}")  # leave no empty line
    text = template.format(
        question=sample.problem,
        options=shown,
        media=PERCEIVE[sample.data_type.value],
        wanted=WANTED[sample.problem_type],
        think=THINK[0],
        end_think=THINK[1],
        answer=ANSWER[0],
        end_answer=ANSWER[1],
    )
    # Of a video with sound the processor interleaves the tokens, at the place of the video.
    content = [*({"type": name} for name in sample.data_type.media), {"type": "text", "text": text.strip()}]
    turns = [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}] if prompt.system else []
    return [*turns, {"role": "user", "content": content}]

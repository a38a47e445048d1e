"""Options and answers as benchmarks write them: the option that is meant, or a refusal that names what contradicts."""

import pytest

from echoink.common.errors import UserError
from echoink.data.choices import choices

PLAIN, LETTERED = ["Rain", "Wind", "Snow"], ["A. Rain", "B. Wind", "C. Snow"]

MEANT = [  # options, answer, the text that is meant
    *((PLAIN, answer, "Wind") for answer in ("Wind", " wind ", "WIND.", "B", "b", "(B)", "B. Wind", "(b) wind.", "B:")),
    *(
        (LETTERED, answer, "Wind")
        for answer in ("B", "b", "B.", "(B)", "B. Wind", "B: wind", "wind", "Wind.", "B.Wind")
    ),
    (["A. B", "B. A"], "A", "B"),
    (["(A)Rain", "(B)Wind"], "B", "Wind"),
    (["A、Rain", "B、Wind"], "B", "Wind"),
    (["A．Rain", "B．Wind"], "Ｂ", "Wind"),
    (["A. Rain", "C. Wind", "D. Fog"], "C", "Wind"),
    (["A. Rain", "C. Wind", "D. Fog"], "D. Fog", "Fog"),
    (["B. Wind", "A. Rain"], "A", "Rain"),
    (["a) Rain", "b) Wind"], "b", "Wind"),
    (["1. Rain", "2. Wind"], "2", "Wind"),
    (["1. Rain", "2. Wind"], 1, "Rain"),
    ({"A": "Rain", "B": "Wind"}, "B", "Wind"),
    ({"B": "Wind", "A": "Rain"}, "A", "Rain"),
    ('{"A": "Rain", "B": "Wind"}', "Rain", "Rain"),
    ("{'A': 'Rain', 'B': 'Wind'}", "B", "Wind"),
    ("['Rain', 'Wind']", "Wind", "Wind"),
    (["C", "G", "Am", "F"], "C", "C"),
    (["B", "A"], "A", "A"),
    (["E. coli", "F. nucleatum"], "E. coli", "E. coli"),
    (["D. Trump", "B. Obama"], "B. Obama", "B. Obama"),
    (["A. E. coli", "B. F. nucleatum"], "A. E. coli", "E. coli"),
    ([1, 2.0, 3], 2, "2"),
    (["0:05", "0:10"], "0:10", "0:10"),
    (["50%", "60%"], "50 %", "50%"),
    (["It's raining", "No"], "It\N{RIGHT SINGLE QUOTATION MARK}s raining", "It's raining"),
    (["Cat", "Dog", "Dog", "Cow"], "D", "Cow"),
    (["Dm7", "DM7", "G7"], "DM7", "DM7"),
    (["A. Cat", "B. Dog", "C. Dog.", "D. Cow"], "C", "Dog"),
    (["1 : 2", "2 : 1"], "2 : 1", "2 : 1"),
    (["1:3", "2:5"], "1:3", "1:3"),
    (["A.M. radio", "B.B. King"], "B.B. King", "B.B. King"),
    (["A.Rain", "B.Wind"], "B", "Wind"),
    (["1: Rain", "2: Wind"], "2", "Wind"),
    (["1. 3", "2. 1", "3. 2"], "3. 2", "2"),
    (["A.", "B.", "C."], "B", "B"),
    ({"A": "", "B": ""}, "B", "B"),
]


@pytest.mark.parametrize(("options", "answer", "text"), MEANT)
def test_the_option_that_is_meant_is_the_right_one(options, answer, text):
    offered, solution = choices(options, answer)
    assert offered["ABCDEF".index(solution[len("<answer>")])][3:] == text
    assert [option[:3] for option in offered] == [f"{letter}. " for letter in "ABCDEF"[: len(offered)]]


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (LETTERED, "A. Wind", "its label and its text are different options"),
        (PLAIN, "A. Wind", "its label and its text are different options"),
        (["Rain", None], "Rain", "an option is null"),
        ({"A": "Rain", "B": None}, "A", "an option is null"),
        (["Rain", {"text": "Wind"}], "Rain", "an option is not a text"),
        (PLAIN, None, "the answer is empty"),
        (PLAIN, " ", "the answer is empty"),
        (PLAIN, 2, "not among the options"),
        (PLAIN, "Hail", "not among the options"),
        (["Dm7", "DM7"], "dm7", "may be several of the options"),
        (PLAIN, "D", "not among the options"),
        (["C", "D", "E"], "A", "not among the options"),
        (["A. Rain", "A. Wind"], "A", "not among the options"),
        (["1. 3", "2. 1", "3. 2"], "3", "the number of one option and the text of another"),
        ("Rain, Wind", "Rain", "the options are not a list"),
        (None, "Rain", "the options are not a list: None"),
        ([f"option {n}" for n in range(30)], "option 3", "30 options are more than 26"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(options, answer, reason):
    with pytest.raises(UserError, match=reason):
        choices(options, answer)

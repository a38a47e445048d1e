"""One line of an error."""

import pytest

from echoink.common.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError("no room\nsecond line"), "no room"), (ValueError("\n late"), "late"), (KeyError(), "KeyError")],
)
def test_an_error_is_told_in_its_first_line_or_by_its_type(error, line):
    assert first_line(error) == line

"""The one error type for what a user can fix, and one line of any other error."""


class UserError(ValueError):
    """An error in the configuration, the data or a checkpoint: the problem, and a hint how to fix it."""

    def __init__(self, problem: str, hint: str = ""):
        super().__init__(f"{problem}\n  → {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_error(stderr: str) -> str:
    """The error that a failed command wrote, on one line; if it wrote none, its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it said nothing"]
    begins = [place for place, line in enumerate(lines) if line.startswith("error:")] or [len(lines) - 1]
    return " ".join(lines[begins[-1] :])

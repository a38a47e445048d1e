"""The one error type for what a user can mend."""


class UserError(ValueError):
    """What is wrong in the configuration, the data or a checkpoint: the place, and the way out."""

    def __init__(self, problem: str, hint: str = ""):
        super().__init__(f"{problem}\n  → {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint

"""The one error type for what a user can mend."""


class UserError(ValueError):
    """Something in the configuration, the data or a checkpoint is wrong; the message names the place and the way out."""

    def __init__(self, problem: str, hint: str = ""):
        super().__init__(f"{problem}\n  → {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint

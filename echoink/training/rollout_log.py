"""Watches rollouts: the learning signal on the screen, and which rollouts are logged."""

from collections.abc import Callable, Sequence
from itertools import groupby

from echoink.common.console import counted, say


class LearningSignalMonitor:
    """Reports the learning signal of the first rollout, and warns once about each sign that a run cannot learn.

    Args:
        cap: the most tokens that a completion may have.
        rewards: names of the terms of the total reward whose weight is not 0.
        rejects: whether right completions are imitated (`grpo.advantage=rejection`), whatever the others' rewards are.

    Attributes:
        said: the warnings so far.
    """

    PATIENCE = 20
    """So many rollouts in a row must show a sign before a warning that one rollout does not justify."""

    def __init__(self, cap: int, rewards: Sequence[str] = ("accuracy", "format"), rejects: bool = False):
        self._cap, self._rewards, self._rejects = cap, rewards, rejects
        self._signs = "a right completion" if rejects else "rewards that differ"
        self._seen = {"format": 0, "cap": 0, "silent": 0}
        self.said: list[str] = []

    def __call__(self, rows: list[dict]) -> None:
        """Check the rows of one rollout, see `on_rollout` of `host.TRLHost`."""
        n = len(rows)
        if all(not row["text"].strip() for row in rows):
            self._say("every completion is empty: the prompt or the end tokens do not fit this model")
        signs = {
            "format": sum(row["format"] for row in rows) < 0.02 * n,
            "cap": sum(row["tokens"] >= self._cap for row in rows) > 0.9 * n,
            "silent": not any(row["advantage"] for row in rows),
        }
        for name, there in signs.items():
            self._seen[name] = self._seen[name] + 1 if there else 0
        first = rows[0]["step"] == 1
        if first:
            say("signal", self._signal(rows))
        if signs["silent"] and first:
            self._say(f"no group of the first rollout has {self._signs}: there is nothing to learn from it")
        if self._seen["silent"] == self.PATIENCE:
            self._say(f"no group had {self._signs} in {self.PATIENCE} rollouts: raise the temperature or G")
        if self._seen["format"] == self.PATIENCE:
            self._say(
                f"the format reward stayed near 0 for {self.PATIENCE} rollouts: does the prompt ask for the tags?"
            )
        if (signs["cap"] and first) or self._seen["cap"] == self.PATIENCE:
            self._say(f"nearly all completions are cut at generation.max_new_tokens={self._cap}: raise it")

    def _signal(self, rows: list[dict]) -> str:
        """In how many groups the total reward and each term differ: only these groups have advantages (Eq. 1).

        With `rejects`, in how many groups a completion is right.
        """
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row["id"])]
        if self._rejects:
            right = sum(any(row["accuracy"] == 1 for row in group) for group in groups)
            return f"a right completion in {right} of {counted(len(groups), 'group')} of the first rollout"
        differing = {
            name: sum(len({round(row[name], 6) for row in group}) > 1 for group in groups)
            for name in ("total", *self._rewards)
        }
        parts = ", ".join(f"{name} in {differing[name]}" for name in self._rewards)
        of = counted(len(groups), "group")
        return f"rewards differ in {differing['total']} of {of} of the first rollout ({parts})"

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)
            say("warning", text)


def every(steps: int, updates: int, write: Callable[[list[dict]], None]) -> Callable[[list[dict]], None]:
    """A function that passes on the first rollout and the first one at or after each multiple of `steps`.

    Args:
        steps: steps between the rollouts that are passed on; 0 passes on none.
        updates: steps that share a rollout.
        write: gets the rows of these rollouts.
    """

    def pass_on(rows: list[dict]) -> None:
        step = rows[0]["step"]
        if steps and (step == 1 or step // steps > (step - updates) // steps):
            write(rows)

    return pass_on

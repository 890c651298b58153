"""The list of a session's edits, with a place in it that undo and redo move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from samri_runtime.session._edits import Edit
from samri_runtime.session._state import State


class History:
    """Edits, and the states after each, computed once.

    Args:
        apply: Gives the state after an edit; it raises where the edit makes no sense.

    Attributes:
        edits: All edits; those that were undone are the last.
        applied: How many are in effect.
    """

    def __init__(self, apply: Callable[[State, Edit], State]) -> None:
        self._apply = apply
        self.edits: list[Edit] = []
        self.applied = 0
        self._states = [State()]  # After 0, 1, ... edits, as far as they were computed.

    @property
    def state(self) -> State:
        """After the edits that are in effect."""
        return self._states[self.applied]

    def replay(self, edits: Sequence[Edit], applied: int) -> Iterator[int]:
        """Take over a list, and apply its first `applied` edits; yields the number of each, from 1, before it."""
        self.edits, self.applied, self._states = list(edits), 0, [State()]
        for number in range(1, applied + 1):
            yield number
            self.redo()

    def add(self, edit: Edit, apply: Callable[[State, Edit], State] | None = None) -> None:
        """Apply a further edit; those that were undone are dropped.

        Args:
            edit: The edit.
            apply: In place of the usual one, this time.
        """
        state = (apply or self._apply)(self.state, edit)
        self.edits[self.applied :] = [edit]
        self._states[self.applied + 1 :] = [state]
        self.applied += 1

    def undo(self) -> bool:
        """Take the last edit back; False if there is none."""
        if self.applied == 0:
            return False
        self.applied -= 1
        return True

    def redo(self) -> bool:
        """Apply the edit that was undone last; False if there is none."""
        if self.applied == len(self.edits):
            return False
        if len(self._states) == self.applied + 1:
            self._states.append(self._apply(self.state, self.edits[self.applied]))
        self.applied += 1
        return True

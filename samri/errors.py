"""Everything that SAMRI raises on purpose.

Each class is a `SamriError` and also the builtin that a caller would expect. The text is one line: what is wrong,
in which file, and the way out. The commands print it and exit with 1.
"""

from __future__ import annotations


def printable(text: object, most: int | None = None) -> str:
    r"""Text from a file or a person as it may go to a screen: one line, and nothing that a terminal would obey.

    Args:
        text: The text; control characters and invisible ones become escapes, such as `\x1b`.
        most: Characters after which it is cut.
    """
    words = " ".join(str(text)[: None if most is None else 4 * most].split())
    line = words if words.isprintable() else "".join(map(_escaped, words))
    return line if most is None or len(line) <= most else f"{line[: most - 3]}..."


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")


class SamriError(Exception):
    """Base of all errors that a user can act on."""


class InputError(SamriError, ValueError):
    """An image or scan can't be used, or a slice of it doesn't exist."""


class PromptError(SamriError, ValueError):
    """A box, point or mask prompt is invalid for this image."""


class BundleError(SamriError, ValueError):
    """A model bundle is missing, damaged, unsafe or too new."""


class CheckpointError(SamriError, ValueError):
    """A checkpoint can't be read or isn't a SAM-shaped model."""


class ProviderError(SamriError, RuntimeError):
    """An ONNX Runtime provider was asked for and can't be used."""


class VerificationError(SamriError, RuntimeError):
    """An exported graph doesn't give the results of the model it was made from."""


class OutputError(SamriError, OSError):
    """A result can't be written."""


class MissingDependencyError(SamriError, ImportError):
    """An optional package is needed; the text holds the line that installs it."""

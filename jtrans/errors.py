"""The errors that end an experiment with a one-line message."""

from collections.abc import Sequence


class InputError(ValueError):
    """A setting, file or argument that cannot be used.

    The message is one line: the field, what was given and what is accepted. It is raised before any computation.
    Experiments print it and exit with status 2; notebooks show it in the place of a traceback.
    """

    def _render_traceback_(self) -> list[str]:  # IPython's name
        return [f"jtrans: error: {one_line(self)}"]


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A run stopped on request; the message says how to resume it."""


def one_line(text: object) -> str:
    """`text` with each sequence of white space, including line breaks, replaced by one space."""
    return " ".join(str(text).split())


def listed(names: Sequence[str], limit: int) -> str:
    """The names with commas between them, of more than `limit` only the first, and how many there are."""
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")

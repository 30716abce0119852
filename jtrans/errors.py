"""The one error that means "what you gave cannot be run"."""


class InputError(ValueError):
    """A setting, file or argument that cannot be used.

    The message is one line: the field, what was given, and what would do. Experiments print it and exit with
    status 2, so it is raised before any compute.
    """


def one_line(text: object) -> str:
    """`text` with every run of white space, line breaks included, as one space."""
    return " ".join(str(text).split())

"""The errors that end an experiment in one line."""


class InputError(ValueError):
    """A setting, file or argument that cannot be used.

    The message is one line: the field, what was given, and what would do. Experiments print it and exit with
    status 2, so it is raised before any compute.
    """


class Interrupted(Exception):  # noqa: N818 (nothing is wrong)
    """A run was asked to stop, and did; the message says what to do to go on."""


def one_line(text: object) -> str:
    """`text` with every run of white space, line breaks included, as one space."""
    return " ".join(str(text).split())

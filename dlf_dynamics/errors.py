"""Errors that the user can fix: one line each, saying what was found and what to do."""


class UserError(Exception):
    """An error that the user can fix; the command line prints it and exits with 2."""


class ConfigError(UserError):
    """A configuration key, value or combination of values that cannot be used."""


class DataError(UserError):
    """Data that cannot be trained on."""


class FileError(UserError):
    """A file that is missing, foreign, damaged, newer than this program or not writable."""


class StaleError(FileError):
    """A result of another run, of an earlier state of its run, or of an older program.

    Attributes:
        found: what the result belongs to, in words.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found


def one_line(error: Exception) -> str:
    r"""The whole message of an error on one line.

    >>> one_line(ValueError("no\n such shape"))
    'no such shape'
    """
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    r"""The first line of the message of an error.

    >>> first_line(ValueError("no such shape\nat f")), first_line(ValueError())
    ('no such shape', 'no message')
    """
    return next(iter(str(error).strip().splitlines()), "no message")


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(0, "crossing"), counted(1, "crossing"), counted(70_000, "update")
    ('0 crossings', '1 crossing', '70,000 updates')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """The text, without its middle if it has more characters than `most`.

    >>> shortened("0123456789", 9), shortened("01234567890", 9)
    ('01 ... 89', '01 ... 90')
    """
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def shown(value: object) -> str:
    """A value of any size, as messages show it.

    >>> shown([0] * 1000)
    '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  ... , 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]'
    """
    try:
        return shortened(repr(value), 80)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return "a list nested too deep to be shown"

"""Errors that the user can fix: one line each, saying what was found and what to do."""


class UserError(Exception):
    """Something that the user can put right; the command line prints it and exits with 2."""


class ConfigError(UserError):
    """A configuration key, value or combination that cannot be used."""


class DataError(UserError):
    """Data that cannot be trained on."""


class FileError(UserError):
    """A file that is missing, foreign, damaged, newer than this program or not writable."""


class StaleError(FileError):
    """A result of another run, of a state that its run is no longer in, or of an older program.

    Attributes:
        found: what it is of.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found


def counted(count: int, noun: str) -> str:
    """A number of things in words.

    >>> counted(0, "crossing"), counted(1, "crossing"), counted(70_000, "update")
    ('0 crossings', '1 crossing', '70,000 updates')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """The text, its middle left out where it has more characters than `most`.

    >>> shortened("0123456789", 9), shortened("01234567890", 9)
    ('01 ... 89', '01 ... 90')
    """
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def shown(value: object) -> str:
    """A value as a message shows it, of whatever size it is.

    >>> shown([0] * 1000)
    '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  ... , 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]'
    """
    try:
        return shortened(repr(value), 80)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return "a list nested too deep to be shown"

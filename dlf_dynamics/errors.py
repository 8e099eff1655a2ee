"""Errors that are the user's to mend: one line each, saying what was found and what to do."""


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

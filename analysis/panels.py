"""Which panels a figure has: those requested, or all that have something to show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dlf_dynamics.errors import ConfigError, shortened


def chosen_panels(
    names: Sequence[str], known: Collection[str], there: Sequence[str], where: str = ""
) -> list[str]:
    """The requested panels, in that order, or else all that have something to show.

    Args:
        names: requested panels; none takes all of `there`.
        known: names of all panels.
        there: names of those that have something to show, from top to bottom.
        where: what they show, for the error message.

    Raises:
        ConfigError: when one is unknown, has nothing to show or is asked for twice.
    """
    for number, name in enumerate(names):
        told = shortened(name, 80)
        if name not in known:
            raise ConfigError(f"panel {told!r} is unknown; choices: {', '.join(known)}")
        if name not in there:
            raise ConfigError(
                f"panel {told!r} has nothing to show{where}; choices: {', '.join(there)}"
            )
        if name in names[:number]:
            raise ConfigError(f"panel {told!r} is named twice; expected each panel once")
    return list(names or there)

"""The commands of the command line: options as dataclasses, each a thin layer over the library.

JAX is imported when a command is executed, so that help answers at once.
"""

from collections.abc import Callable
from functools import partial

from dlf_dynamics.commands.analyses import Plot, command_of
from dlf_dynamics.commands.check import Check
from dlf_dynamics.commands.files import Info, Repair, Validate
from dlf_dynamics.commands.reproduction import Reproduce
from dlf_dynamics.commands.studies import Sweep
from dlf_dynamics.commands.training import Train
from dlf_dynamics.registry import ANALYSES

COMMANDS: dict[str, Callable[[], type]] = {
    "train": lambda: Train,
    **{name: partial(command_of, name) for name in ANALYSES},
    "check": lambda: Check,
    "sweep": lambda: Sweep,
    "reproduce": lambda: Reproduce,
    "plot": lambda: Plot,
    "info": lambda: Info,
    "validate": lambda: Validate,
    "repair": lambda: Repair,
}
"""What makes each command, by its name."""

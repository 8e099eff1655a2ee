"""The commands of the command line: options as dataclasses, each a thin layer over the library.

JAX is imported when a command is executed, so that help answers at once.
"""

from dlf_dynamics.commands.bifurcations import Bifurcations, Check
from dlf_dynamics.commands.files import Info, Repair, Validate
from dlf_dynamics.commands.reproduction import Reproduce
from dlf_dynamics.commands.spectra import Plot, Spectrum
from dlf_dynamics.commands.studies import Sweep
from dlf_dynamics.commands.training import Train

COMMANDS: dict[str, type] = {
    "train": Train,
    "spectrum": Spectrum,
    "bifurcations": Bifurcations,
    "check": Check,
    "sweep": Sweep,
    "reproduce": Reproduce,
    "plot": Plot,
    "info": Info,
    "validate": Validate,
    "repair": Repair,
}

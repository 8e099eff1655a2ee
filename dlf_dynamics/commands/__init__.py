"""The commands of the command line: options as dataclasses, each a thin layer over the library.

The module of a command is imported when that command is used, and JAX when it is executed, so that
`--help` is fast.
"""

from dlf_dynamics.registry import ANALYSES, Entry

COMMANDS = {
    "train": Entry("dlf_dynamics.commands.training:Train", "Train a network and record the run."),
    "import": Entry(
        "dlf_dynamics.commands.importing:Import",
        "Make a run file of checkpoints that another program wrote.",
    ),
    **ANALYSES,
    "check": Entry(
        "dlf_dynamics.commands.check:Check",
        "Tell whether a run stayed below its instability threshold, and if not, where it did not.",
    ),
    "sweep": Entry(
        "dlf_dynamics.commands.studies:Sweep",
        "Train many configurations and keep what came of each in one file.",
    ),
    "reproduce": Entry(
        "dlf_dynamics.commands.reproduction:Reproduce",
        "Make a published result again, and compare what comes out with what was published.",
    ),
    "plot": Entry(
        "dlf_dynamics.commands.plotting:Plot",
        "Draw all figures of a run again, or those of a study.",
    ),
    "report": Entry(
        "dlf_dynamics.commands.report:Report",
        "Write what is on file of a run, or of a study, as one page to look at and to send.",
    ),
    "export": Entry(
        "dlf_dynamics.commands.export:Export",
        "Write a run, a result or a study as CSV, Parquet or netCDF, for other programs.",
    ),
    "info": Entry(
        "dlf_dynamics.commands.files:Info",
        "Show what a file holds: of a run status, configuration, last values and provenance.",
    ),
    "validate": Entry(
        "dlf_dynamics.commands.files:Validate",
        "Check that a file is what was written; exits with 1 and a line for each fault found.",
    ),
    "repair": Entry(
        "dlf_dynamics.commands.files:Repair",
        "Rewrite a run file whose writer was killed, keeping every complete row.",
    ),
}
"""Commands by name, in the order of the list."""


def command_named(name: str) -> type:
    """The class of a command; for an analysis it is made from its declaration."""
    if name not in ANALYSES:
        return COMMANDS[name].loaded()
    from dlf_dynamics.commands.analyses import command_of

    return command_of(name)

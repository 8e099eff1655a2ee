"""`dlf-dynamics import`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dlf_dynamics.commands.terminal import Flattened, say
from dlf_dynamics.config import ImportConfig
from dlf_dynamics.errors import ConfigError, counted
from dlf_dynamics.startup import check_writable, start_jax


@dataclass(frozen=True)
class Import:
    """Make a run file of checkpoints that another program wrote.

    They are files of Flax (.msgpack), NumPy (.npz), safetensors or PyTorch (.pt, .pth, .bin, .ckpt:
    a `state_dict`, alone or in a dictionary), folders that orbax wrote, or folders of all these.
    Parameters are found by name, and checkpoints that do not fit the problem are refused: the
    spectrum of another model would look plausible. No code in PyTorch's files is executed.

      dlf-dynamics import checkpoints/ --problem model.py:setup -o run.h5
      dlf-dynamics import epoch_*.pt --problem model.py:setup --steps-per-number 391 -o run.h5
    """

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """Files or folders of checkpoints."""
    problem: Annotated[str, tyro.conf.arg(metavar="MODULE:FUNCTION")]
    """The function that returns problem, optimizer (or None) and parameters of the model, as
    module:function or file.py:function; the values of the parameters do not matter."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("run.h5")
    """Run file to write."""
    config: Annotated[ImportConfig, Flattened] = field(default_factory=ImportConfig)
    overwrite: bool = False
    """Replace the output file if it exists."""
    quiet: bool = False
    """No progress bar."""

    def execute(self) -> int:
        """Imports."""
        if not self.checkpoints:
            raise ConfigError("no checkpoints are given; expected files or folders of them")
        check_writable(self.output)
        from dlf_dynamics.checkpoint_files import find_checkpoints, read_checkpoint
        from dlf_dynamics.leaves import leaves_of

        paths = find_checkpoints(self.checkpoints)
        known = {paths[0]: read_checkpoint(paths[0])}  # so that it is read only once
        leaves = [leaf for _, leaf in leaves_of(known[paths[0]]) if leaf.ndim]
        double = any(leaf.dtype == "float64" for leaf in leaves)
        start_jax("float64" if double else "float32", 0, sum(leaf.size for leaf in leaves))
        from dlf_dynamics.importing import import_checkpoints
        from dlf_dynamics.loop import load_setup
        from dlf_dynamics.progress import bar

        setup = load_setup(self.problem)
        with bar("importing", len(paths), quiet=self.quiet) as advance:
            imported = import_checkpoints(
                paths,
                setup,
                self.output,
                self.config,
                overwrite=self.overwrite,
                progress=advance,
                read=lambda path: known.pop(path) if path in known else read_checkpoint(path),
            )
        say(
            f"wrote {imported.path}: {counted(len(imported.steps), 'checkpoint')} of "
            f"{counted(imported.num_params, 'parameter')}"
        )
        say(
            f"{imported.files[0]} is of step {imported.steps[0]:,}, {imported.files[-1]} of step "
            f"{imported.steps[-1]:,}"
        )
        for note in imported.notes:
            say(note)
        say(f"next: dlf-dynamics spectrum {imported.path} --problem {self.problem}")
        return 0

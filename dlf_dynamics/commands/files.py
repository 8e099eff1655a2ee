"""`dlf-dynamics info`, `validate` and `repair`: what is done with a run file alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dlf_dynamics.commands.terminal import INVALID, RunPath
from dlf_dynamics.startup import open_recorded
from dlf_dynamics.streams import printable


@dataclass(frozen=True)
class Info:
    """Show what a run file holds: status, configuration, last values and provenance."""

    path: RunPath
    """Run file."""
    json: bool = False
    """Print JSON."""

    def execute(self) -> int:
        """Prints."""
        run = open_recorded(self.path, 0)
        content = {
            "path": str(run.path),
            "run_id": run.run_id,
            "status": run.status,
            "updates": int(run.steps[-1]) if len(run.steps) else 0,
            "rows": len(run.steps),
            "checkpoints": len(run.checkpoint_steps),
            "num_params": run.num_params,
            "last": {
                name: values[-1].tolist() for name, values in run.scalars.items() if len(values)
            }
            | {
                f"validation_{name}": values[-1].tolist()
                for name, values in run.validation.items()
                if len(values)
            },
            "data_sha256": run.data_sha256,
            "recording": None if run.recording is None else asdict(run.recording),
            "config": dict(run.settings),
            "provenance": dict(run.provenance),
        }
        if self.json:
            print(json.dumps(content, indent=1))
        else:
            _print_nested(content)
        return 0


@dataclass(frozen=True)
class Validate:
    """Check a run file against its schema; exits with 1 and a line for each fault found."""

    path: RunPath
    """Run file."""

    def execute(self) -> int:
        """Checks."""
        from dlf_dynamics.validation import problems

        found = problems(self.path)
        for line in found:
            print(printable(f"{self.path}: {line}"))
        if not found:
            print(printable(f"{self.path}: valid"))
        return INVALID if found else 0


@dataclass(frozen=True)
class Repair:
    """Rewrite a run file whose writer was killed, keeping every complete row."""

    path: RunPath
    """Run file; it is replaced once the new one is whole."""

    def execute(self) -> int:
        """Repairs."""
        from dlf_dynamics.runfile import complete_steps, copy, open_file

        copy(self.path, self.path)
        with open_file(self.path) as file:
            rows = len(complete_steps(file, "steps"))
            checkpoints = len(complete_steps(file, "checkpoints"))
        print(printable(f"repaired {self.path}: {rows} rows, {checkpoints} checkpoints"))
        return 0


def _print_nested(content: dict[str, Any], indent: str = "") -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            print(printable(f"{indent}{key}:"))
            _print_nested(value, indent + "  ")
        else:
            print(printable(f"{indent}{key}: {value}"))

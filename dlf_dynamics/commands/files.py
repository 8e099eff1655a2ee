"""`dlf-dynamics info`, `validate` and `repair`, which take a file of any kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlf_dynamics import resultfile, schema
from dlf_dynamics.commands.studies import is_study
from dlf_dynamics.commands.terminal import INVALID, RunPath
from dlf_dynamics.errors import FileError, UserError
from dlf_dynamics.hdf5 import format_name
from dlf_dynamics.jsontypes import finite
from dlf_dynamics.startup import open_recorded
from dlf_dynamics.streams import printable


@dataclass(frozen=True)
class Info:
    """Show what a file holds: of a run status, configuration, last values and provenance."""

    path: RunPath
    """Run file, result file or study file."""
    json: bool = False
    """Print JSON."""

    def execute(self) -> int:
        """Prints."""
        content = {"path": str(self.path)} | _kind_of(self.path).info(self.path)
        if self.json:
            print(json.dumps(finite(content), indent=1))
        else:
            _print_nested(content)
        return 0


@dataclass(frozen=True)
class Validate:
    """Check that a file is what was written; exits with 1 and a line for each fault found.

    For a run it checks the datasets, the checksum of each row, the digests of data and
    configuration, and whether status, steps and checkpoints agree; for a result its digest and the
    types and shapes of all arrays; for a study its datasets and configurations.
    """

    path: RunPath
    """Run file, result file or study file."""

    def execute(self) -> int:
        """Checks."""
        faults, note = _kind_of(self.path).problems(self.path)
        for line in faults:
            print(printable(f"{self.path}: {line}"))
        if not faults:
            print(printable(f"{self.path}: valid{note}"))
        return INVALID if faults else 0


@dataclass(frozen=True)
class Repair:
    """Rewrite a run file whose writer was killed, keeping every complete row.

    Other kinds of files need no repair. Faults that cannot be repaired are listed as by `validate`,
    and the exit code is 1.
    """

    path: RunPath
    """Run file; it is replaced once the new one is complete."""

    def execute(self) -> int:
        """Repairs."""
        kind = _kind_of(self.path)
        print(printable(kind.repair(self.path)))
        left, _ = kind.problems(self.path)
        for line in left:
            print(printable(f"{self.path}: {line}"))
        return INVALID if left else 0


@dataclass(frozen=True)
class _Kind:
    """The functions for a kind of file.

    Attributes:
        info: returns the content by name.
        problems: returns a line for each fault, and a note to print after `valid`.
        repair: repairs the file, and returns a line about what was done.
    """

    info: Callable[[Path], dict[str, Any]]
    problems: Callable[[Path], tuple[list[str], str]]
    repair: Callable[[Path], str]


def _kind_of(path: Path) -> _Kind:
    """The kind that a file declares; a run if it declares none, whose errors say what is wrong."""
    if is_study(path):
        return _Kind(_study_info, _study_problems, _study_repaired)
    if path.exists() and format_name(path) == resultfile.FORMAT.name:
        return _Kind(_result_info, _result_problems, _result_repaired)
    if path.is_file() and format_name(path) != schema.FORMAT.name:
        raise FileError(f"{path} is not a dlf-dynamics run file, result file or study file")
    return _Kind(_run_info, _run_problems, _run_repaired)


def _run_info(path: Path) -> dict[str, Any]:
    from dlf_dynamics.recorded import RecordedRun

    run = open_recorded(path, 0)
    # No update follows the last row, so it has no realized edge.
    last = {
        name: values[-1].tolist()
        for name, values in run.scalars.items()
        if len(values) and not name.startswith("realized_edge")
    }
    held_out = {
        f"validation_{name}": values[-1].tolist()
        for name, values in run.validation.items()
        if len(values)
    }
    return {
        "run_id": run.run_id,
        "status": run.status,
        "updates": int(run.steps[-1]) if len(run.steps) else 0,
        "rows": len(run.steps),
        "checkpoints": len(run.checkpoint_steps),
        "num_params": run.num_params,
        "last": last | held_out,
        "realized_edge": asdict(run.edges),
        "data_sha256": run.data_sha256,
        "recording": asdict(run.recording) if isinstance(run, RecordedRun) else None,
        "config": dict(run.settings),
        "provenance": dict(run.provenance),
    }


def _run_problems(path: Path) -> tuple[list[str], str]:
    from dlf_dynamics.runfile import open_file
    from dlf_dynamics.runreader import has_checksums
    from dlf_dynamics.validation import problems

    faults = problems(path)
    if faults:
        return faults, ""
    with open_file(path) as file:
        checked, stored = has_checksums(file), "data/inputs" in file
        version = file.attrs["format_version"]
    try:
        run = open_recorded(path, 0)
        if stored:
            _ = run.dynamics
    except UserError as error:
        return [_fault(path, error)], ""
    return [], "" if checked else f" (format {version}, whose rows have no checksums)"


def _fault(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path} is ")


def _run_repaired(path: Path) -> str:
    from dlf_dynamics.hdf5 import ContentError
    from dlf_dynamics.runfile import copy, open_file
    from dlf_dynamics.runreader import complete_steps, resume_state

    with open_file(path) as file:
        try:
            resume_state(file)
            dropped = ""
        except ContentError as error:
            dropped = f"; the state where it stopped was left out: {error}"
    copy(path, path)
    with open_file(path) as file:
        rows, checkpoints = (len(complete_steps(file, axis)) for axis in ("steps", "checkpoints"))
    return f"repaired {path}: {rows} rows, {checkpoints} checkpoints{dropped}"


def _result(path: Path) -> resultfile.Result:
    """Reads a result file of any analysis, with the checks of its analysis."""
    from dlf_dynamics.analysis.pipeline import analysis_named
    from dlf_dynamics.registry import ANALYSES

    analysis = resultfile.analysis_of(path)
    if analysis in ANALYSES:
        analysis_named(analysis).load(path)
    return resultfile.read(path, analysis, None)


def _result_info(path: Path) -> dict[str, Any]:
    result = _result(path)
    return {
        "analysis": result.analysis,
        "run": vars(result.source),
        "arrays": {
            name: f"{array.dtype} {list(array.shape)}"
            for name, array in result.arrays.items()
            if hasattr(array, "shape") and not isinstance(array, bytes)
        },
        "config": dict(result.config),
        "provenance": json.loads(result.provenance),
    }


def _result_problems(path: Path) -> tuple[list[str], str]:
    try:
        _result(path)
    except FileError as error:
        return [_fault(path, error)], ""
    return [], ""


def _result_repaired(path: Path) -> str:
    analysis = _result(path).analysis
    return f"nothing to repair: {path} is a result of {analysis}, which is never written in part"


def _study_info(path: Path) -> dict[str, Any]:
    from dlf_dynamics.analysis.studies.studyfile import read_study

    study = read_study(path)
    return {
        "runs": len(study.statuses),
        "statuses": Counter("not done" if s is None else s for s in study.statuses),
        "keys": list(study.study.keys),
        "measures": asdict(study.study.measures),
        "base": asdict(study.study.base),
        "created": study.created,
        "provenance": dict(study.provenance),
    }


def _study_problems(path: Path) -> tuple[list[str], str]:
    from dlf_dynamics.analysis.studies.studyfile import read_study
    from dlf_dynamics.configfile import from_json

    try:
        results = read_study(path)
        configs = [from_json(config) for config in results.configs]
    except (UserError, ValueError) as error:
        return [_fault(path, error)], ""
    same = configs == results.study.configs
    return [] if same else ["/configs are not the configurations of /study"], ""


def _study_repaired(path: Path) -> str:
    from dlf_dynamics.analysis.studies.studyfile import read_study

    done = int(read_study(path).done.sum())
    return (
        f"nothing to repair: {path} has the outcomes of {done} runs; `dlf-dynamics sweep --resume` "
        "goes on with the rest"
    )


def _print_nested(content: dict[str, Any], indent: str = "") -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            print(printable(f"{indent}{key}:"))
            _print_nested(value, indent + "  ")
        else:
            print(printable(f"{indent}{key}: {value}"))

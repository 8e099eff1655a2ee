"""`dlf-dynamics export`: writes results to files that other programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics import resultfile
from dlf_dynamics.commands.studies import is_study
from dlf_dynamics.commands.terminal import ProblemName, RunPath, say
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import format_name
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.shown import Shown


@dataclass(frozen=True)
class Export:
    """Write a run, a result or a study as CSV, Parquet or netCDF, for other programs.

    A .csv or .parquet file holds one table: for a run the scalars of each step, for a spectrum each
    eigenvalue with its interval, status and threshold, for bifurcations the instabilities, for a
    study its runs. --table names another table; an unknown name lists them all. A .nc file holds
    all arrays with named axes, for xarray and others. Numbers equal those in the file to the last
    bit; missing values are empty. Run, last step and units are in the metadata, for FILE.csv in
    FILE.csv-metadata.json. Needs the extra `export`.

      dlf-dynamics export run.spectrum.h5 -o eigenvalues.csv
      dlf-dynamics export run.spectrum.h5 -o crossings.csv --table crossings
      dlf-dynamics export run.h5 -o run.nc
    """

    path: RunPath
    """Run file, result file or study file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, in the format of its suffix: .csv, .parquet or .nc."""
    table: str | None = None
    """Table to write, such as `crossings` or `ntk` of a spectrum; none means the main table."""
    problem: ProblemName = None

    def execute(self) -> int:
        """Writes it."""
        from dlf_dynamics.exporting import export, metadata_path, require_suffix

        require_suffix(self.output)
        for written in (self.output, metadata_path(self.output)):
            if written.resolve() == self.path.resolve():
                raise ConfigError(
                    f"{written} would be written, and is the file to export; expected another name"
                )
        check_writable(self.output)
        result, more = self._found()
        say("wrote " + ", ".join(map(str, export(result, self.output, self.table, **more))))
        return 0

    def _found(self) -> tuple[Shown, dict[str, Any]]:
        """The content of the file, and its provenance."""
        if is_study(self.path):
            from dlf_dynamics.analysis.studies.studyfile import read_study

            return read_study(self.path), {}
        if format_name(self.path) != resultfile.FORMAT.name:
            run = open_recorded(self.path, 0, self.problem)
            return run, {"provenance": dict(run.provenance)}
        from dlf_dynamics.analysis.pipeline import analysis_named
        from dlf_dynamics.registry import ANALYSES

        name = resultfile.analysis_of(self.path)
        if name not in ANALYSES:
            raise ConfigError(
                f"{self.path} is a result of {name}; expected one of {', '.join(ANALYSES)}"
            )
        origin = resultfile.read(self.path, name, None).provenance
        return analysis_named(name).load(self.path), {"provenance": json.loads(origin)}

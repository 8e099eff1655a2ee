"""`dlf-dynamics export`: results as files that other programs read."""

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

    A .csv or .parquet file holds one table: of a run the scalars of each step, of a spectrum each
    eigenvalue with its interval, status and threshold, of bifurcations the instabilities, of a
    study its runs. --table names another one; an unknown name lists them all. A .nc file holds all
    arrays with named axes, for xarray and others. Numbers are those of the file, to the last bit;
    what there is not is empty. Run, last step and units are in the metadata: those of FILE.csv lie
    beside it, in FILE.csv-metadata.json. Needs the extra `export`.

      dlf-dynamics export run.spectrum.h5 -o eigenvalues.csv
      dlf-dynamics export run.spectrum.h5 -o crossings.csv --table crossings
      dlf-dynamics export run.h5 -o run.nc
    """

    path: RunPath
    """Run file, result file or study file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, in the format of its suffix: .csv, .parquet or .nc."""
    table: str | None = None
    """Table to write, such as `crossings` or `ntk` of a spectrum; none means the main one."""
    problem: ProblemName = None

    def execute(self) -> int:
        """Writes it."""
        from dlf_dynamics.exporting import SUFFIXES, export, metadata_path

        if self.output.suffix not in SUFFIXES:
            raise ConfigError(
                f"output is {self.output}; expected a name that ends in {', '.join(SUFFIXES)}"
            )
        for written in (self.output, metadata_path(self.output)):
            if written.resolve() == self.path.resolve():
                raise ConfigError(
                    f"{written} would be written, and is what is exported; expected another name"
                )
        check_writable(self.output)
        found, more = self._found()
        say("wrote " + ", ".join(map(str, export(found, self.output, self.table, **more))))
        return 0

    def _found(self) -> tuple[Shown, dict[str, Any]]:
        """What the file holds, and where it came from."""
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

"""Fit a hardware profile to measurements: of this machine's CPU, kernel tables, or published step times."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile_file import render_profile, with_calibration

from ..inputs.checks import text
from ..inputs.cpu_profile import measure_cpu
from ..inputs.names import REFERENCE, find_model
from ..results.calibration import CalibratedProfile


def calibrate(
    *,
    from_published: str | None = None,
    from_aiconfigurator: str | Path | None = None,
    system: str | None = None,
    profile: str | None = None,
) -> CalibratedProfile:
    """Fit a hardware profile; without arguments, to measurements of this machine's CPU.

    Args:
        from_published: Fit this profile's engine to its published step times instead.
        from_aiconfigurator: Fit kernel laws to the tables of the installed package aiconfigurator_core instead: its folder.
        system: With it: whose tables, such as `h100_sxm`.
        profile: With it: the profile that is fitted; None for that of the system.

    Raises:
        InputError: A name or folder is unknown, or the arguments contradict one another.
    """
    if (system is not None or profile is not None) and from_aiconfigurator is None:
        given = "system" if system is not None else "profile"
        raise bad(given, "", "`from_aiconfigurator` beside it", "nothing")
    if from_published is not None and from_aiconfigurator is not None:
        raise bad("from_published", "", "no `from_aiconfigurator` beside it: fit kernels first, engines on top", "both")
    if from_aiconfigurator is not None:
        folder = Path(text("from_aiconfigurator", from_aiconfigurator))
        from magicdec.costmodel.calibration.kernel_fits import fit_tables
        from magicdec.costmodel.calibration.kernel_tables import SYSTEMS

        if system is None or text("system", system) not in SYSTEMS:
            raise bad("system", "", f"a system whose tables are known ({', '.join(SYSTEMS)})", repr(system))
        known = resolve_profile(SYSTEMS[system].profile if profile is None else text("profile", profile), "profile")
        fitted = fit_tables(folder, system, known)
        return CalibratedProfile(fitted, with_calibration(known.text, fitted.calibration))
    if from_published is not None:
        from magicdec.costmodel.calibration.engine_fit import fit_published

        known = resolve_profile(text("from_published", from_published), "from_published")
        fitted = fit_published(known)
        return CalibratedProfile(fitted, with_calibration(known.text, fitted.calibration))
    measured = measure_cpu(find_model(REFERENCE).config)
    return CalibratedProfile(measured, render_profile(measured, date.today()))

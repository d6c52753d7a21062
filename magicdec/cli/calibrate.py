"""`magicdec calibrate`."""

from __future__ import annotations

import click

from .options import emit, json_option


@click.command()
@click.option("--from-published", metavar="NAME", help="Fit this profile's engine to its published step times instead.")
@click.option(
    "--from-aiconfigurator",
    type=click.Path(),
    metavar="DIR",
    help="Fit kernel laws to the tables of the installed package aiconfigurator_core instead.",
)
@click.option("--system", metavar="NAME", help="With it: whose tables, such as h100_sxm.")
@click.option("--profile", metavar="NAME", help="With it: the profile that is fitted.  [default: that of the system]")
@json_option("the profile")
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="Write the profile (YAML), for `--hardware FILE`.")
def calibrate(
    from_published: str | None,
    from_aiconfigurator: str | None,
    system: str | None,
    profile: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Fit a hardware profile to measurements.

    By default this machine's CPU is measured. Other sources are kernel tables
    and the published step times of a GPU.
    """
    from ..api.calibrate import calibrate as fit

    result = fit(from_published=from_published, from_aiconfigurator=from_aiconfigurator, system=system, profile=profile)
    if output is not None:
        result.save(output)
    emit(result, as_json=as_json)

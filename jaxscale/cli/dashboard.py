"""`jaxscale dashboard`: all runs on one page in a browser on this machine."""

import ipaddress
from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    runs: Annotated[Path, typer.Argument(help="directory with runs")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8765,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than 127.0.0.1 let others read")
    ] = "127.0.0.1",
) -> None:
    """Show the runs below a directory side by side, live, until Ctrl-C. It only reads."""
    from jaxscale.errors import UserError
    from jaxscale.telemetry.dashboard.runs import Runs
    from jaxscale.telemetry.dashboard.server import DashboardServer

    if not runs.is_dir():
        raise UserError(f"no directory {runs}: give the one that your runs are in")
    with DashboardServer(Runs(runs), host, port) as server:
        if not is_loopback(host):
            typer.echo(
                f"warning: everybody who reaches {host} can read the runs, their configurations and samples",
                err=True,
            )
        typer.echo(f"{runs} at {server.address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

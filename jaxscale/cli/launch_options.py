"""Arguments and options that the commands of `jaxscale launch` share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the run")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value ..., for example training.steps=200")
]
RunDir = Annotated[Path | None, typer.Option(help="where the run lives (default: runs/NAME)")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be run, and run nothing")]
JoinTimeout = Annotated[
    float | None, typer.Option(help="seconds that processes wait for each other (300)")
]
MaxRestarts = Annotated[
    int, typer.Option(min=0, help="restarts in a row without a newer checkpoint")
]
CrashLoop = Annotated[
    int, typer.Option(min=1, help="failures at the same step after which there is no restart")
]
Grace = Annotated[
    float, typer.Option(min=1, help="seconds to save and end in, after SIGTERM or Ctrl-C")
]
PeerGrace = Annotated[
    float, typer.Option(min=0, help="seconds that the others have when a process has failed")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="where process 0 listens")]
Environment = Annotated[
    list[str] | None, typer.Option("--env", help="NAME=value for the processes; repeat it")
]
Python = Annotated[
    str, typer.Option(help="the interpreter there that has jaxscale, relative to --directory")
]
Directory = Annotated[str, typer.Option(help="where it runs there; ~/ is the home there")]
Ship = Annotated[
    bool, typer.Option("--ship", help="bring this project's code to --directory first")
]
Setup = Annotated[
    str | None, typer.Option(help="a command of the shell there that prepares --directory")
]

"""One thing that was looked at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["good", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """warn: works, but not as well as it could. bad: something will not work. fix: what to do about either."""

    check: str
    state: State
    words: str
    fix: str = ""


@dataclass(frozen=True)
class Options:
    """What is looked at. storage: where runs live. coordinator: HOST:PORT of process 0, if it is to be reached."""

    storage: str = "runs"
    port: int = 8476
    coordinator: str | None = None

    @property
    def existing(self) -> Path:
        """The directory of the runs, or what there is above it."""
        path = Path(self.storage).absolute()
        return next(one for one in (path, *path.parents) if one.is_dir())

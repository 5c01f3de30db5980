"""`jaxscale train` as a list of words."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainCommand:
    """program: what starts jaxscale, for example ("python3", "-m", "jaxscale"). run_dir: where the run lives."""

    program: tuple[str, ...]
    config: str
    overrides: Sequence[str]
    run_dir: str
    join_timeout: float | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        waits = () if self.join_timeout is None else ("--join-timeout", f"{self.join_timeout:g}")
        # Behind `--` a configuration may begin with a dash, and an override too.
        return (
            *self.program,
            "train",
            "--run-dir",
            self.run_dir,
            *waits,
            "--",
            self.config,
            *self.overrides,
        )

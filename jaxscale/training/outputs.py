"""Where a run's results go: metrics, trackers, the screen, and the files of the run directory."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.config.text import to_yaml
from jaxscale.data.tokenizers import BYTES, Tokenizer, load_tokenizer
from jaxscale.telemetry.environment import describe_environment
from jaxscale.telemetry.metrics import MetricsLog
from jaxscale.telemetry.progress import Progress, make_progress
from jaxscale.telemetry.trackers import Tracker, make_trackers

TOKENIZER_FOLDER = "tokenizer"


def is_main() -> bool:
    """Whether this process speaks for the run: of several that share its directory, one writes."""
    return jax.process_index() == 0


def to_nobody(_values: Mapping[str, Any]) -> None:
    """Where nothing is exposed."""


@dataclass(frozen=True)
class Outputs:
    """The open outputs of a run; those of a process that does not speak for it take everything and show nothing."""

    directory: Path
    log: MetricsLog | None
    tracker: Tracker
    progress: Progress
    expose: Callable[[Mapping[str, Any]], None] = to_nobody

    def record(self, values: Mapping[str, Any], *, show: bool = True) -> None:
        """One line of `metrics.jsonl`, the same to the trackers and the screen; every process exposes its own."""
        self.expose(values)
        if self.log is None:
            return
        self.log.write(values)
        self.tracker.log(int(values["step"]), values)
        if show:
            self.progress.update(values)

    def sample(self, step: int, text: str) -> None:
        """A text sample: `samples/STEP.txt` and the trackers."""
        if self.log is None:
            return
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"{step}.txt").write_text(text, encoding="utf-8")
        self.tracker.text(step, "sample", text)

    def go_back(self, step: int) -> None:
        """What was logged behind `step` is dropped: it will be made again."""
        if self.log is not None:
            self.log.truncate_after(step)

    def last_sample(self) -> str:
        """The newest text sample, or nothing."""
        files = sorted((self.directory / "samples").glob("*.txt"), key=lambda file: int(file.stem))
        return files[-1].read_text(encoding="utf-8").rstrip() if files else ""

    def close(self) -> None:
        self.progress.close()
        self.tracker.close()
        if self.log is not None:
            self.log.close()


def open_outputs(
    config: RunConfig,
    directory: Path,
    start_step: int,
    expose: Callable[[Mapping[str, Any]], None] = to_nobody,
) -> Outputs:
    """Outputs that go on after `start_step`: what an interrupted run logged beyond it is dropped."""
    main = is_main()
    tracker = make_trackers(
        config.telemetry.trackers if main else [],
        run_dir=directory,
        config=config.model_dump(mode="json"),
        run_name=config.name,
        start_step=start_step,
    )
    if not main:
        return Outputs(directory, None, tracker, _Silence(), expose)
    log = MetricsLog(directory / "metrics.jsonl")
    log.truncate_after(start_step)
    progress = make_progress(
        total_steps=config.training.steps, start_step=start_step, title=config.name
    )
    return Outputs(directory, log, tracker, progress, expose)


class _Silence:
    """A display that shows nothing."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Shown by another process."""

    def note(self, message: str) -> None:
        """Said by another process."""

    def close(self) -> None:
        """Nothing is open."""


def write_run_files(config: RunConfig, plan: Plan, tokenizer: Tokenizer, directory: Path) -> None:
    """`config.yaml`, `plan.yaml`, `environment.json`, `tokenizer/`: what runs, how it is laid out, and on what."""
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer.fingerprint != load_tokenizer(BYTES).fingerprint:
        (directory / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        tokenizer.save(directory / TOKENIZER_FOLDER)
    _replace(directory / "config.yaml", to_yaml(config))
    _replace(directory / "plan.yaml", to_yaml(plan))
    write_json(directory / "environment.json", describe_environment())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    _replace(path, json.dumps(values, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """The whole file or the one before: an interrupted or full-disk write leaves no half of a file behind."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

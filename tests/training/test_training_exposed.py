"""Every process of a run answers Prometheus where the configuration asks for it, and nobody where it does not."""

import socket
from pathlib import Path
from urllib.request import urlopen

from jaxscale.config.loading import load_config
from jaxscale.config.run import RunConfig
from jaxscale.telemetry.ledger import TimeLedger
from jaxscale.telemetry.trackers import make_trackers
from jaxscale.training.exposed import exposed
from jaxscale.training.outputs import Outputs, to_nobody

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


class Quiet:
    """A process that does not speak for the run shows nothing."""

    def update(self, record: object) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


def config(*overrides: str) -> RunConfig:
    return load_config(QUICKSTART, overrides)


def test_nothing_listens_unless_it_is_asked_for() -> None:
    said: list[str] = []
    with exposed(config(), TimeLedger(), said.append) as expose:
        assert expose is to_nobody
    assert said == []


def test_a_process_that_writes_no_metrics_exposes_its_own(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = min(one.getsockname()[1], 65000)
    said: list[str] = []
    asked = config(f"telemetry.prometheus_port={port}", "name=some.run")
    with exposed(asked, TimeLedger(age=5.0), said.append) as expose:
        tracker = make_trackers([], run_dir=tmp_path, config={}, run_name="x")
        outputs = Outputs(tmp_path, None, tracker, Quiet(), expose)
        outputs.record({"step": 3, "loss": 2.5})
        (address,) = [line.removeprefix("metrics for Prometheus: ") for line in said]
        with urlopen(address, timeout=20) as answer:
            text = answer.read().decode()
    assert 'jaxscale_loss{run="some.run",process="0"} 2.5' in text
    assert 'jaxscale_planned_steps{run="some.run",process="0"} 120.0' in text
    assert 'kind="startup"} 5.' in text
    assert list(tmp_path.iterdir()) == []

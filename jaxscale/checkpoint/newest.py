"""The newest checkpoint of a run, in a process of its own: `python -m jaxscale.checkpoint.newest RUN`.

For those who watch a run and may not wait for long: a store that does not answer holds its libraries for minutes.
"""

import json
import signal
import sys
from pathlib import Path

from jaxscale.checkpoint.layout import CHECKSUMS_FILE, listed_steps
from jaxscale.checkpoint.locate import checkpoints_below
from jaxscale.checkpoint.places import check_reachable
from jaxscale.errors import UserError


def newest(run: Path) -> dict[str, float] | None:
    """Step, and Unix time when it was complete. Raises UserError for a store that cannot be reached."""
    directory = checkpoints_below(run)
    check_reachable(directory)
    steps = listed_steps(directory)
    if not steps:
        return None
    last = directory / str(steps[-1])
    if isinstance(last, Path):
        return {"step": steps[-1], "time": last.stat().st_mtime}
    complete = last / CHECKSUMS_FILE  # Written last.
    return {"step": steps[-1], "time": complete.fs.modified(complete.path).timestamp()}


def main() -> None:
    run, patience = Path(sys.argv[1]), int(sys.argv[2])
    signal.alarm(patience)  # Ends the process, whatever it waits for and whoever has forgotten it.
    try:
        sys.stdout.write(json.dumps(newest(run)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""One export. Arguments: RUN OUT PROCESS NUM_PROCESSES. Prints after each piece, so that it can be killed there."""

import os
import sys
from pathlib import Path

from jaxscale.interop.export_hf import export_hf
from jaxscale.interop.export_job import ExportOptions


def say(num_bytes: int) -> None:
    os.write(1, b"%d\n" % num_bytes)  # One write a line: two threads report.


def main(run: Path, out: Path, process: int, num_processes: int) -> None:
    options = ExportOptions(
        piece_bytes=256,
        max_shard_bytes=6_000,
        process=process,
        num_processes=num_processes,
        num_threads=2,
        report=say,
    )
    made = export_hf(run, out, options=options)
    print("complete" if made.complete else "others are not done", made.skipped, flush=True)


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

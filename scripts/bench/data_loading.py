"""How fast the loader makes batches: one line of JSON.

    python scripts/bench/data_loading.py STORE [--sequence-length 2048] [--global-batch 64]

`tokens_per_second` is of `iterate` alone, with nothing to wait for: a training step that uses
fewer tokens a second than this never waits for data. `first_batch_seconds` is the cost of a seek.
"""

import argparse
import json
import os
import time

from jaxscale.data.loader import Batches, iterate
from jaxscale.data.mixture import Mixture
from jaxscale.data.store import Store


def main() -> None:
    options = parse()
    store = Store.open(options.store)
    batches = Batches(Mixture.of(store), options.sequence_length, options.global_batch, seed=0)
    print(json.dumps(vars(options) | {"cpus": os.cpu_count()} | measure(batches, options)))


def measure(batches: Batches, options: argparse.Namespace) -> dict[str, float]:
    begin = time.perf_counter()
    ahead = iterate(batches, start_step=10**6, threads=options.threads, prefetch=options.prefetch)
    next(ahead)
    start = time.perf_counter()
    num_batches, now = 0, start
    while now - start < options.seconds:
        next(ahead)
        num_batches, now = num_batches + 1, time.perf_counter()
    ahead.close()
    tokens = num_batches * batches.global_batch * batches.sequence_length
    return {
        "store_tokens": batches.tokens_per_epoch,
        "first_batch_seconds": round(start - begin, 4),
        "batches_per_second": round(num_batches / (now - start), 2),
        "tokens_per_second": round(tokens / (now - start)),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="folder of a store, for example out/train")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()

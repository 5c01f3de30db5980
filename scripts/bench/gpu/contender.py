"""One process of one contender. The last line it prints is its result as JSON, behind a mark."""

import argparse
import json
from pathlib import Path
from typing import Any

from variants import SIZES, Timing, parse_variant

MARK = "RESULT "


def main() -> None:
    arguments = _arguments()
    print(MARK + json.dumps(_result(arguments)))


def _result(arguments: argparse.Namespace) -> dict[str, Any]:
    size, variant = SIZES[arguments.size], parse_variant(arguments.variant)
    timing = Timing(arguments.warmup, arguments.groups, arguments.steps)
    if arguments.contender == "torch":
        import torch_trainer

        return torch_trainer.run(size, variant, timing, arguments.started).as_dict()
    import ours

    if arguments.contender == "losses":
        return {"losses": ours.losses(size, variant, arguments.steps)}
    return ours.run(size, variant, timing, arguments.started, arguments.trace).as_dict()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=("jaxscale", "torch", "losses"))
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--trace", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

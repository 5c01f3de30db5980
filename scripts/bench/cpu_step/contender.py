"""One contender in a process of its own: `contender.py NAME --dtype D`, prints its timing as JSON."""

import process
import shape


def main() -> None:
    chosen = shape.options()
    if chosen.contender == "bare":
        process.prepare(chosen.dtype)
        import bare

        bare.run(chosen)
    elif chosen.contender in {"torch", "torch_compile"}:
        import torch_step

        torch_step.run(chosen, compiled=chosen.contender == "torch_compile")
    else:
        raise SystemExit(f"no contender {chosen.contender!r}: bare, torch, torch_compile")


if __name__ == "__main__":
    main()

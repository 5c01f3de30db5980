"""One contender in a process of its own: `contender.py NAME --dtype D`, prints its timing as JSON."""

import shape


def _prepare(chosen: shape.Options) -> None:
    """What `jaxscale train` does before it imports JAX."""
    from jaxscale.hardware.cpu_process import prepare_cpu_process

    prepare_cpu_process(chosen.dtype)


def trainer(chosen: shape.Options) -> None:
    _prepare(chosen)
    import trainer

    trainer.run(chosen)


def step(chosen: shape.Options) -> None:
    _prepare(chosen)
    import trainer

    trainer.run_step(chosen)


def bare(chosen: shape.Options) -> None:
    _prepare(chosen)
    import bare

    bare.run(chosen)


def torch(chosen: shape.Options) -> None:
    import torch_step

    torch_step.run(chosen)


def torch_compile(chosen: shape.Options) -> None:
    import torch_step

    torch_step.run(chosen, compiled=True)


def maxtext(chosen: shape.Options) -> None:
    import maxtext_step

    maxtext_step.run(chosen)


def maxtext_minimal(chosen: shape.Options) -> None:
    import maxtext_step

    maxtext_step.run(chosen, remat="minimal")


CONTENDERS = {
    f.__name__: f for f in (trainer, step, bare, torch, torch_compile, maxtext, maxtext_minimal)
}


def main() -> None:
    chosen = shape.options()
    if chosen.contender not in CONTENDERS:
        raise SystemExit(f"no contender {chosen.contender!r}: {', '.join(CONTENDERS)}")
    CONTENDERS[chosen.contender](chosen)


if __name__ == "__main__":
    main()

"""Arguments and options that `jaxscale tune` and `jaxscale bench kernels` share."""

from typing import Annotated

import typer

Models = Annotated[
    list[str],
    typer.Argument(help="YAML files of models, whose calls are measured; key=value ..."),
]
OpName = Annotated[
    str,
    typer.Option(
        "--op", help="only this one: matmul, glu, ragged_matmul, attention, linear_cross_entropy"
    ),
]
Rows = Annotated[int, typer.Option(min=1, help="tokens of a device in a pass")]
Sequence = Annotated[
    int | None,
    typer.Option(
        min=1, help="tokens of a sequence (default: the run's or the model's, at most --rows)"
    ),
]
Dtype = Annotated[str, typer.Option(help="of the operands")]

"""What a person sees while text becomes tokens."""

from collections.abc import Callable

from jaxscale.data.corpus import Report
from jaxscale.data.prepare import Progress

_DOING = {"hash": "reading", "tokenize": "tokenizing", "write": "writing"}


def show_preparation(
    say: Callable[[str], None], between: Callable[[], None] = lambda: None
) -> Report:
    """A report function that says each phase once, when it ends.

    between: called whenever progress is made; what it raises ends the preparation.
    """

    def report(progress: Progress) -> None:
        between()
        if progress.done == progress.total and progress.phase != "hash":
            doing = _DOING[progress.phase]
            say(
                f"{doing}: {progress.done} of {progress.total} files, {progress.count.tokens:,} tokens"
            )

    return report

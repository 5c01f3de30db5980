"""What the writes of a failed save say after it has failed.

Orbax waits for the first write that fails and closes its event loop. TensorStore then prints a traceback for each of
the others as they end, and asyncio logs their errors as never asked for: hundreds of lines around the one message that
says what happened (`CheckpointSaveError`).
"""

import logging
import sys

_CLOSED = "Event loop is closed"


def hush_late_writes() -> None:
    """Drop just these, for the rest of the process; for a command line, not for a library to call."""
    logging.getLogger("asyncio").addFilter(_is_news)
    show = sys.unraisablehook

    def show_news(found: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == _CLOSED):
            show(found)

    sys.unraisablehook = show_news


def _is_news(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()

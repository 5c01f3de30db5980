"""Lines of many processes on one screen, each behind its label, and in a file of its own."""

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

_ERROR = "error: "
# Gloo says twice per process and mesh that it is connected: in the files, where it does no harm.
_NOISE = ("[Gloo] Rank ", "peer ranks. Expected number of connected peer ranks")


class Screen:
    """Writes whole lines to standard output, from any thread; a reader that goes away ends nothing."""

    def __init__(self, width: int) -> None:
        self._width, self._lock, self._open = width, threading.Lock(), True

    def say(self, message: str) -> None:
        """A line of the launcher itself."""
        self._write(f"{'launch':>{self._width}} | {message}\n")

    def show(self, label: str, line: str) -> None:
        self._write(f"{label:>{self._width}} | {line}\n")

    def _write(self, text: str) -> None:
        with self._lock:
            if not self._open:
                return
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError:
                self._open = False


class Transcript:
    """One process's output: to its file and the screen. Its last error message is kept back, to be said once for all.

    Close it when both streams have ended.
    """

    def __init__(self, label: str, path: Path, screen: Screen, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._label, self._screen = label, screen
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._error: list[str] = []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(f"--- attempt {attempt}, {now}\n")
        self._file.flush()

    def output(self, stream: IO[bytes]) -> None:
        """Reads standard output to its end."""
        for line in stream:
            self._keep(text := _text(line))
            if not any(noise in text for noise in _NOISE):
                self._screen.show(self._label, text)

    def errors(self, stream: IO[bytes]) -> None:
        """Reads standard error to its end; what begins with `error: ` is held back."""
        for line in stream:
            self._keep(text := _text(line))
            if text.startswith(_ERROR):
                self._release()
                self._error = [text.removeprefix(_ERROR)]
            elif self._error:
                self._error.append(text)
            else:
                self._screen.show(self._label, text)

    @property
    def message(self) -> str:
        return "\n".join(self._error)

    def close(self) -> None:
        self._file.close()

    def _release(self) -> None:
        for number, line in enumerate(self._error):
            self._screen.show(self._label, line if number else _ERROR + line)

    def _keep(self, line: str) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(line + "\n")
                self._file.flush()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")

"""The newest checkpoints of many runs, for pages that wait for no store and no disk."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxscale.telemetry.saved import Saved, Unseen, newest_checkpoint, newest_inside, place_of

# Between two looks at a place outside of a run, each a process of its own that may take 20 s; so many at a time.
_PERIOD_SECONDS, _LATE_SECONDS, _AT_ONCE = 60.0, 25.0, 4


@dataclass(frozen=True)
class Newest:
    """unseen: why nothing can be said, in words; "" where `saved` is what there is."""

    saved: Saved | None = None
    unseen: str = ""


@dataclass
class _Look:
    """A look at a place that began at `began`; found: what came of it, at `ended`."""

    began: float
    found: Newest | None = None
    ended: float = 0.0


class NewestCheckpoints:
    """What was last seen of each run's checkpoints. One caller at a time; clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: dict[Path, tuple[int, str]] = {}
        self._known: dict[tuple[Path, str], Newest] = {}
        self._looks: dict[tuple[Path, str], _Look] = {}

    def of(self, run: Path) -> Newest:
        """Of a run directory. A place inside of it is read at once, any other by a thread: until that knows more, what
        it last knew; nothing at first."""
        place = self._place(run)
        if _is_inside(place):
            return Newest(newest_inside(run / place))
        key = run, place
        look = self._looks.get(key)
        if look is not None and look.found is not None:
            self._known[key] = look.found
        if look is None or (
            look.found is not None and self._clock() - look.ended > _PERIOD_SECONDS
        ):
            self._begin(key)
        elif look.found is None and self._clock() - look.began > _LATE_SECONDS:
            self._known[key] = Newest(
                unseen=f"{place}: no answer for {self._clock() - look.began:.0f} s"
            )
        return self._known.get(key, Newest())

    def _place(self, run: Path) -> str:
        """Where a run keeps its checkpoints, read again when its configuration has changed."""
        file = run / "config.yaml"
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        known = self._places.get(run)
        if known is None or known[0] != changed:
            known = self._places[run] = changed, place_of(run)
        return known[1]

    def _begin(self, key: tuple[Path, str]) -> None:
        if sum(look.found is None for look in self._looks.values()) < _AT_ONCE:
            look = self._looks[key] = _Look(self._clock())
            threading.Thread(target=self._look, args=(key[0], look), daemon=True).start()

    def _look(self, run: Path, look: _Look) -> None:
        try:
            found = Newest(newest_checkpoint(run))
        except (Unseen, OSError) as reason:
            found = Newest(unseen=str(reason))
        look.ended, look.found = self._clock(), found


def _is_inside(place: str) -> bool:
    path = Path(place)
    return "://" not in place and not path.is_absolute() and ".." not in path.parts

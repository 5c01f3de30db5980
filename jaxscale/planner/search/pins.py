"""What the user fixes: `tensor<=8`, `fsdp=64`, `remat=full`, `pipeline=1`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from jaxscale.config.explain import nearest
from jaxscale.errors import UserError
from jaxscale.planner.vocabulary.layout import AXES, Remat, Schedule, VocabActivation

NUMBERS = (*AXES, "microbatches", "virtual_stages", "zero")
NAMES: Mapping[str, tuple[str, ...]] = {
    "remat": get_args(Remat),
    "schedule": get_args(Schedule),
    "vocab_activation": get_args(VocabActivation),
}
_PIN = re.compile(r"\s*([a-z_]+)\s*(<=|>=|=)\s*([\w.-]+)\s*")


@dataclass(frozen=True)
class Pin:
    """key: an axis or another number of a layout, or remat or schedule. relation: =, <= or >=."""

    key: str
    relation: str
    value: int | str

    def allows(self, value: int | str) -> bool:
        if isinstance(self.value, str) or isinstance(value, str):
            return value == self.value
        if self.relation == "<=":
            return value <= self.value
        return value >= self.value if self.relation == ">=" else value == self.value

    def __str__(self) -> str:
        return f"{self.key}{self.relation}{self.value}"


@dataclass(frozen=True)
class Pins:
    pins: tuple[Pin, ...] = ()

    def allows(self, key: str, value: int | str) -> bool:
        return all(pin.allows(value) for pin in self.pins if pin.key == key)

    def among(self, key: str, values: Iterable[int]) -> tuple[int, ...]:
        return tuple(value for value in values if self.allows(key, value))

    def names(self, key: str) -> bool:
        return any(pin.key == key for pin in self.pins)


def parse_pins(texts: Sequence[str]) -> Pins:
    """Pins as the command line gives them. Raises UserError for one that means nothing, or for two that contradict."""
    pins = tuple(_parse(text) for text in texts)
    for index, first in enumerate(pins):
        for second in pins[index + 1 :]:
            if first.key == second.key and not _agree(first, second):
                raise UserError(f"--pin {first} and --pin {second} contradict each other: drop one")
    return Pins(pins)


def check_product(pins: Pins, num_devices: int) -> None:
    """Raises UserError for pinned axes that cannot multiply to the number of devices."""
    fixed = [pin for pin in pins.pins if pin.relation == "=" and pin.key in AXES]
    product = 1
    for pin in fixed:
        assert isinstance(pin.value, int)
        product *= pin.value
        if num_devices % product:
            listed = " and ".join(f"--pin {one}" for one in fixed[: fixed.index(pin) + 1])
            raise UserError(
                f"{listed} contradict the cluster: {product} does not divide {num_devices} devices"
            )
    if len({pin.key for pin in fixed}) == len(AXES) and product != num_devices:
        raise UserError(f"the pinned axes multiply to {product}, not to {num_devices} devices")


def _parse(text: str) -> Pin:
    found = _PIN.fullmatch(text)
    if found is None:
        raise UserError(f"--pin {text}: write it as tensor<=8, fsdp=64 or remat=full")
    key, relation, value = found.groups()
    if key in NAMES:
        return _named(text, key, relation, value)
    if key not in NUMBERS:
        known = (*NUMBERS, *NAMES)
        raise UserError(
            f"--pin {text}: there is no {key!r}{nearest(key, known)}; pins are for {', '.join(known)}"
        )
    if not value.isdecimal() or (int(value) < 1 and key != "zero"):
        raise UserError(f"--pin {text}: {key} is a whole number from 1")
    return Pin(key, relation, int(value))


def _named(text: str, key: str, relation: str, value: str) -> Pin:
    if relation != "=":
        names = " or ".join(f"{key}={name}" for name in NAMES[key])
        raise UserError(f"--pin {text}: {key} has names, not sizes: write {names}")
    if value not in NAMES[key]:
        raise UserError(
            f"--pin {text}: there is no {key} {value!r}{nearest(value, NAMES[key])}; "
            f"there are {', '.join(NAMES[key])}"
        )
    return Pin(key, relation, value)


def _agree(first: Pin, second: Pin) -> bool:
    if isinstance(first.value, str) or isinstance(second.value, str):
        return first.value == second.value
    tried = {first.value, second.value, (first.value + second.value) // 2}
    return any(first.allows(value) and second.allows(value) for value in tried)

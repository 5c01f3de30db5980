"""Pipeline schedules in closed form: bubbles, what is in flight, what is sent.

p: stages, m: microbatches, v: chunks a device. F, B, W: time of a forward pass, of a whole backward pass and of its
weight gradients, of one microbatch on one stage; FB: of a forward and a backward pass of DualPipe that overlap.
Sources: Narayanan et al. 2021 (arXiv:2104.04473, section 2.2); DeepSeek-V3 (arXiv:2412.19437, table 2); Qi et al. 2023
(arXiv:2401.10241, table 1) and 2024 (arXiv:2405.15362), whose B leaves out W: here B is the whole backward pass.
"""

from typing import Literal

Schedule = Literal[
    "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "dualpipe"
]


def bubble_over_ideal(p: float, m: float, v: float = 1) -> float:
    """Idle time over that of the work: (p - 1) / (v m), GPipe and 1F1B with v = 1 (Narayanan et al., 2.2)."""
    return (p - 1) / (v * m)


def bubble_fraction(p: float, m: float, v: float = 1) -> float:
    """Idle time over the whole: (p - 1) / (v m + p - 1)."""
    return (p - 1) / (v * m + p - 1)


def bubble_seconds(
    schedule: Schedule, *, p: float, F: float, B: float, W: float, FB: float = 0.0, v: float = 1
) -> float:
    """Idle time of a device in a step."""
    times = {
        "gpipe": (p - 1) * (F + B),
        "1f1b": (p - 1) * (F + B),
        "interleaved": (p - 1) * (F + B) / v,
        "zb-h1": (p - 1) * (F + B - 2 * W),
        "zb-h2": (p - 1) * (F + B - 3 * W),
        "zb-v": (p - 1) * (F + B - 3 * W),
        "dualpipe": (p / 2 - 1) * (FB + B - 3 * W),
    }
    return times[schedule]


# Of the bubble rate of 1F1B where forward, input-gradient and weight-gradient passes take the same time.
RELATIVE_BUBBLE: dict[Schedule, float] = {
    "1f1b": 1.0,
    "zb-h1": 1 / 3,
    "zb-h2": 0.0,
    "zb-v": 0.0,
    "v-half": 1 / 2,
    "v-min": 2 / 3,
}
# Activations over those of 1F1B, and traffic between stages over its (V shapes pass every stage twice).
RELATIVE_ACTIVATIONS: dict[Schedule, float] = {
    "1f1b": 1.0,
    "zb-h1": 1.0,
    "zb-h2": 2.0,
    "zb-v": 1.0,
    "v-half": 1 / 2,
    "v-min": 1 / 3,
}
RELATIVE_TRAFFIC: dict[Schedule, float] = {
    "1f1b": 1.0,
    "zb-h1": 1.0,
    "zb-h2": 1.0,
    "zb-v": 2.0,
    "v-half": 2.0,
    "v-min": 2.0,
}


def parameter_copies(schedule: Schedule) -> int:
    """DualPipe runs from both ends, and so holds two stages a device."""
    return 2 if schedule == "dualpipe" else 1


def microbatches_in_flight(schedule: Schedule, p: float, m: float) -> float:
    """Microbatches whose activations the fullest device holds."""
    if schedule == "gpipe":
        return m
    return p + 1 if schedule == "dualpipe" else p


def boundary_elements(b: float, s: float, h: float) -> float:
    """Elements between two stages for one microbatch, each way (Narayanan et al., 3.2)."""
    return b * s * h

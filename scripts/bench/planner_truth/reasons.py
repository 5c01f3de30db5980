"""Why the planner prefers another layout than the published one, term by term."""

from jaxscale.planner.report.comparison import GIB, differences
from jaxscale.planner.vocabulary.prediction import Prediction
from planner_truth.cases import Case
from planner_truth.stacks import software_of

# Of the slower step: terms that differ by less are not told.
_TOLD = 0.005


def why(
    case: Case, published: Prediction, found: Prediction, name: str = "the published layout"
) -> str:
    """What costs less in the planner's choice and what costs more, in seconds of a step, largest first.

    Then what does not fit, and how the software's authors chose, where they say it.
    """
    ratio = published.step_seconds / found.step_seconds
    said = f"{name} takes {ratio:.2f} of the planner's best ({layout_words(found)}): {terms(published, found)}"
    room = "" if published.fits else f"; {memory_words(published)}"
    rule = software_of(case).rule
    return said + room + (f"; its authors: {rule}" if rule else "")


def terms(slower: Prediction, faster: Prediction) -> str:
    """Seconds that each component of the faster has less (-) or more (+), and what each step takes."""
    least = _TOLD * slower.step_seconds
    differing = [
        f"{one.component} {one.change:+.3g} s"
        for one in differences(slower.time, faster.time)
        if abs(one.change) >= least
    ]
    whole = f"{slower.step_seconds:.4g} s against {faster.step_seconds:.4g} s"
    return f"{', '.join(differing)} ({whole})" if differing else f"no term differs ({whole})"


def layout_words(found: Prediction) -> str:
    layout = found.layout
    mesh = " x ".join(f"{axis} {size}" for axis, size in layout.mesh.items() if size > 1)
    passes = f"{layout.microbatches} microbatches"
    schedule = "" if layout.pipeline == 1 else f", {layout.schedule} x {layout.virtual_stages}"
    return f"{mesh or 'one device'}, remat {layout.remat}, {passes}{schedule}"


def memory_words(found: Prediction) -> str:
    """Components of what does not fit, largest first."""
    lines = sorted(found.memory, key=lambda line: -line.value)
    listed = ", ".join(
        f"{line.component} {line.value / GIB:.1f}" for line in lines if line.value >= GIB
    )
    return f"it is computed to need {found.peak_bytes / GIB:.1f} GiB of {found.usable_bytes / GIB:.1f}: {listed}"

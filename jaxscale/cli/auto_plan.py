"""Where the planner and training meet: the plan of a run, and its prediction."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from jaxscale.checkpoint.layout import listed_steps
from jaxscale.checkpoint.locate import checkpoints_below
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.models.description import Blueprint
from jaxscale.parallel.attached import UnknownDevices, attached_cluster
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.mesh import check_batch
from jaxscale.parallel.pipeline.advice import few_microbatches
from jaxscale.parallel.placement import check_plan
from jaxscale.planner.measured.calibration_file import efficiency_with
from jaxscale.planner.measured.runs import plan_words, read_kept, record_of
from jaxscale.planner.model.source import groups_of_description, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.exhaustive import Problem
from jaxscale.planner.search.proposal import (
    CHOSEN_FIELDS,
    LOSS_RULE,
    Proposal,
    predict_plan,
    propose,
    run_problem,
)
from jaxscale.planner.vocabulary.prediction import Prediction
from jaxscale.telemetry.format import bytes_text, seconds_text
from jaxscale.training.job import Chosen, PlanChooser, choose_plan, is_by_hand, plan_as_given
from jaxscale.training.state_bytes import kept_bytes_per_parameter

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """A run before it has a plan. given: what its configuration says of the plan."""

    config: RunConfig
    model: Blueprint
    directory: Path
    given: Plan
    problem: Problem

    def runs(self, plan: Plan) -> bool:
        """Whether the trainer takes a plan for this model and batch."""
        training, length = self.config.training, self.config.data.sequence_length
        try:
            check_batch(plan, training.global_batch, length)
            check_plan(plan, self.model.description)
        except PlacementError:
            return False
        return True


def planner(directory: Path, say: Say) -> PlanChooser:
    """What `training` asks for the plan of a run in `directory`.

    A plan that names mesh axes is taken as it is, and a run that goes on keeps the plan that it has; otherwise the
    planner chooses for the attached devices. Models and devices that it does not know are laid out without it, and
    `say` hears so.
    """

    def choose(config: RunConfig, model: Blueprint) -> Chosen:
        given = plan_as_given(config)
        try:
            problem = _problem(config, model, given)
        except _NotPlanned as reason:
            if not is_by_hand(given):
                say(f"plan: {reason}: all devices on one axis, chosen without the planner")
            return Chosen(choose_plan(config, model))
        run = _Run(config, model, directory, given, problem)
        return _by_hand(run) if is_by_hand(given) else _kept(run, say) or _proposed(run, say)

    def warned(config: RunConfig, model: Blueprint) -> Chosen:
        chosen = choose(config, model)
        warning = _idle(chosen.plan)
        if warning:
            say(f"warning: {warning}")
        return chosen

    return warned


def _idle(plan: Plan) -> str | None:
    return few_microbatches(
        plan.schedule,
        stages=plan.pipeline,
        microbatches=plan.microbatches,
        chunks=plan.virtual_stages,
    )


class _NotPlanned(Exception):
    """Why the planner has nothing to say of a run."""


def _problem(config: RunConfig, model: Blueprint, given: Plan) -> Problem:
    if config.model.build is not None:
        raise _NotPlanned("a module of your own, whose layers the planner does not know")
    try:
        cluster = attached_cluster()
    except UnknownDevices as error:
        raise _NotPlanned(str(error)) from None
    training = config.training
    return run_problem(
        Workload(
            shape_of(config.model, config.name), training.global_batch, config.data.sequence_length
        ),
        groups_of_description(model.description),
        cluster,
        given,
        efficiency_with(None, cluster),
        moments_bytes=kept_bytes_per_parameter(config, model.description),
        loss_chunk=training.loss_chunk,
    )


def _by_hand(run: _Run) -> Chosen:
    if run.given.num_devices != run.problem.cluster.num_devices or not run.runs(run.given):
        return Chosen(run.given)  # Training refuses it, and says what would do.
    return _chosen(run, run.given, predict_plan(run.problem, run.given), "by hand")


def _kept(run: _Run, say: Say) -> Chosen | None:
    """The plan of a run that goes on, under the keys that its configuration sets now; None where there is none."""
    before = _plan_before(run.directory)
    if before is None:
        return None
    chosen = (*CHOSEN_FIELDS, "stage_layers")
    taken = {
        name: getattr(before, name) for name in chosen if name not in run.given.model_fields_set
    }
    if LOSS_RULE in before.rules:
        taken["rules"] = {LOSS_RULE: before.rules[LOSS_RULE], **run.given.rules}
    plan = Plan.model_validate({**run.given.model_dump(exclude_unset=True), **taken})
    devices = run.problem.cluster.num_devices
    if plan.num_devices != devices:
        say(
            f"plan: the run was laid over {plan.num_devices} devices ({plan_words(before)}), now there are {devices}; "
            f"its batch of {run.config.training.global_batch} sequences stays"
        )
        return None
    if not run.runs(plan):
        say(
            f"plan: that of the run so far ({plan_words(before)}) does not fit its configuration any more"
        )
        return None
    say(f"plan: {plan_words(plan)}, as the run has it")
    return _chosen(run, plan, predict_plan(run.problem, plan), "the run so far")


def _plan_before(directory: Path) -> Plan | None:
    """The plan that a run with checkpoints was laid out by; a run without any starts anew."""
    path = directory / "plan.yaml"
    if not path.is_file() or not listed_steps(checkpoints_below(directory)):
        return None
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError):
        return None


def _proposed(run: _Run, say: Say) -> Chosen:
    proposal = propose(run.problem, run.given, run.runs)
    if proposal is None:
        _say_what_divides(run, say)
        # No mesh divides: this says which numbers do not.
        return Chosen(choose_plan(run.config, run.model))
    say(f"plan: {_words(run.problem.cluster, proposal)}")
    if proposal.warning:
        say(f"warning: {proposal.warning}")
    return _chosen(run, proposal.plan, proposal.prediction, "the planner")


def _say_what_divides(run: _Run, say: Say) -> None:
    """Of a run that goes on: another batch would be another run, so it is the devices that have to be other ones."""
    batch, attached = run.config.training.global_batch, run.problem.cluster.num_devices
    if _plan_before(run.directory) is None or batch % attached == 0:
        return
    fewer = max(count for count in range(1, attached) if batch % count == 0)
    more = next((count for count in range(attached + 1, batch + 1) if batch % count == 0), fewer)
    counts = " or ".join(str(count) for count in dict.fromkeys((fewer, more)))
    say(
        f"plan: a batch of {batch} sequences does not divide over {attached} devices. To go on with the same batches, "
        f"start the run on {counts} of them"
    )


def _words(cluster: Cluster, proposal: Proposal) -> str:
    prediction = proposal.prediction
    meshes = "the only mesh" if proposal.num_meshes == 1 else f"of {proposal.num_meshes} meshes"
    peak, usable = bytes_text(prediction.peak_bytes), bytes_text(prediction.usable_bytes)
    memory = f"{peak} of {usable} a device predicted"
    # What CPU devices take for a step, nobody has measured.
    speed = "" if cluster.kind == "cpu" else f", {seconds_text(prediction.step_seconds)} a step"
    return f"{plan_words(proposal.plan)} on {cluster.name} ({meshes}; {memory}{speed})"


def _chosen(run: _Run, plan: Plan, prediction: Prediction, chosen_by: str) -> Chosen:
    return Chosen(
        plan,
        record_of(
            run.problem,
            plan,
            prediction,
            chosen_by=chosen_by,
            since_step=_since_step(run.directory, plan),
        ),
    )


def _since_step(directory: Path, plan: Plan) -> int:
    """The step behind which this plan runs: of a plan that the run has already, that which it began at."""
    steps = listed_steps(checkpoints_below(directory))
    if not steps:
        return 0
    try:
        kept = read_kept(directory)
    except UserError:  # Only a report would have needed it.
        return steps[-1]
    return kept.since_step if kept.plan == plan else steps[-1]

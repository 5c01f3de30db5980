import math

import pytest

from jaxscale.checkpoint import Keep
from jaxscale.checkpoint.keep import obsolete_steps
from jaxscale.errors import UserError

NO_METRICS = dict.fromkeys((10, 20, 30, 40, 50))
LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: None, 50: 2.5}


@pytest.mark.parametrize(
    ("metrics", "keep", "obsolete"),
    [
        ({}, Keep(last=1), []),
        (NO_METRICS, Keep(last=1), [10, 20, 30, 40]),
        (NO_METRICS, Keep(last=2), [10, 20, 30]),
        (NO_METRICS, Keep(last=9), []),
        (NO_METRICS, Keep(last=1, every=20), [10, 30]),
        (NO_METRICS, Keep(last=2, every=30), [10, 20]),
        (dict.fromkeys((0, 10, 20)), Keep(last=1, every=20), [10]),
        (NO_METRICS, Keep(last=1, best=2, metric="loss"), [10, 20, 30, 40]),
        (LOSSES, Keep(last=1, best=1, metric="loss"), [10, 30, 40]),
        (LOSSES, Keep(last=1, best=2, metric="loss"), [10, 40]),
        (LOSSES, Keep(last=1, best=1, metric="accuracy", mode="max"), [20, 30, 40]),
        (LOSSES, Keep(last=1, every=40, best=1, metric="loss"), [10, 30]),
        ({10: math.nan, 20: 5.0, 30: 6.0}, Keep(last=1, best=1, metric="loss"), [10]),
        ({10: math.nan, 20: 5.0, 30: 6.0}, Keep(best=1, last=1, metric="x", mode="max"), [10, 20]),
        ({10: 1.0, 20: 1.0, 30: 2.0}, Keep(last=1, best=1, metric="loss"), [10]),
    ],
)
def test_only_steps_that_no_rule_wants_are_obsolete(metrics, keep, obsolete):
    assert obsolete_steps(metrics, keep) == obsolete


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"last": 0}, "keep.last is 0"),
        ({"every": 0}, "keep.every is 0"),
        ({"best": -1}, "keep.best is -1"),
        ({"best": 2}, "keep.metric is missing"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Keep(**fields)


def test_saving_prunes_on_disk_by_steps_and_stored_metrics(open_checkpoints, small):
    keep = Keep(last=1, every=30, best=1, metric="loss")
    for step, loss in ((10, 5.0), (20, 1.0), (30, 4.0), (40, 3.0)):
        open_checkpoints(keep).save(step, small, {}, metric_value=loss, blocking=True)
    # 20 is the best, 30 is for ever, 40 is the last; a new process knew 20's loss from disk.
    assert open_checkpoints(keep).steps() == [20, 30, 40]


def test_a_save_after_going_back_to_an_old_step_survives(open_checkpoints, small):
    checkpointer = open_checkpoints(Keep(last=1))
    checkpointer.save(300, small, {}, blocking=True)
    checkpointer.save(150, small, {}, blocking=True)
    assert 150 in checkpointer.steps()

"""Evaluation of a trained model on a store or on text."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from jaxscale.config.data_section import DataSection, Source
from jaxscale.data.corpus import Report, is_store, open_corpus, open_prepared
from jaxscale.data.loader import eval_batches
from jaxscale.data.packing import IGNORE, Batch
from jaxscale.data.store import Store
from jaxscale.errors import UserError
from jaxscale.training.evaluation import Evaluation, evaluate, make_evaluation_step
from jaxscale.training.trained import Trained, tokenizer_spec


def evaluate_trained(
    trained: Trained, data: str | None, num_batches: int, report: Report | None = None
) -> Evaluation:
    """Loss over `data` (a store or text; the run's own evaluation set by default), whole where `num_batches` is 0.

    A batch has the rows that it has in the run's own evaluations, on any mesh. Raises UserError for a store of another
    tokenizer, or where the run held nothing out.
    """
    store = _store(trained, data, report)
    config, placement = trained.config, trained.placement
    rows = config.training.global_batch
    batches = islice(eval_batches(store, config.data.sequence_length, rows), num_batches or None)
    return evaluate(
        make_evaluation_step(trained.model, placement, config.training),
        trained.params,
        _divisible(batches, placement.plan.batch_shards),
        placement,
        trained.tokenizer.token_byte_lengths(),
    )


def _divisible(batches: Iterable[Batch], parts: int) -> Iterator[Batch]:
    """The batches with rows of padding behind, so that they split over the devices."""
    for batch in batches:
        yield {
            name: np.pad(
                values,
                ((0, -len(values) % parts), (0, 0)),
                constant_values=IGNORE if name == "targets" else 0,
            )
            for name, values in batch.items()
        }


def _store(trained: Trained, data: str | None, report: Report | None) -> Store:
    section = trained.config.data.model_copy(
        update={"tokenizer": tokenizer_spec(trained.directory)}
    )
    if data is not None:
        _check_tokenizer(trained, data)
        section = _only(section, data)
    corpus = open_corpus(section, report)
    if corpus.eval is None:
        raise UserError("the run held no text out (data.eval_fraction=0): name some with --data")
    return corpus.eval


def _only(section: DataSection, data: str) -> DataSection:
    """The section over `data` alone: the text that the run was trained on need not be there any more."""
    alone = {"train": [Source(path=data)], "eval": data, "eval_fraction": 0.0}
    return section.model_copy(update=alone)


def _check_tokenizer(trained: Trained, data: str) -> None:
    if not is_store(data):
        return
    found = open_prepared(data).train.manifest.tokenizer.fingerprint
    if found != trained.tokenizer.fingerprint:
        raise UserError(
            f"the store {data} was prepared with another tokenizer ({found[:12]}) than the run "
            f"({trained.tokenizer.fingerprint[:12]}): give its text to --data, or prepare it again with "
            f"--tokenizer {tokenizer_spec(trained.directory)}"
        )

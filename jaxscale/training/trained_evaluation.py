"""Evaluation of a trained model on a store or on text."""

from itertools import islice

from jaxscale.data.corpus import open_corpus
from jaxscale.data.loader import eval_batches
from jaxscale.data.store import Store, check_tokenizer
from jaxscale.errors import UserError
from jaxscale.training.evaluation import Evaluation, evaluate, make_evaluation_step
from jaxscale.training.trained import Trained


def evaluate_trained(trained: Trained, data: str | None, num_batches: int) -> Evaluation:
    """Loss over `data` (a store or text; the run's own evaluation set by default), whole where `num_batches` is 0.

    Raises UserError for text of another tokenizer, or where the run held nothing out.
    """
    store = _store(trained, data)
    check_tokenizer(store, trained.tokenizer)
    config, placement = trained.config, trained.placement
    rows = (
        -(-config.training.global_batch // placement.plan.batch_shards)
        * placement.plan.batch_shards
    )
    batches = eval_batches(store, config.data.sequence_length, rows)
    step = make_evaluation_step(trained.model, placement, config.training)
    return evaluate(
        step,
        trained.params,
        islice(batches, num_batches or None),
        placement,
        trained.tokenizer.token_byte_lengths(),
    )


def _store(trained: Trained, data: str | None) -> Store:
    section = trained.config.data
    if data is not None:
        section = section.model_copy(update={"eval": data})
    corpus = open_corpus(section)
    if corpus.eval is None:
        raise UserError("the run held no text out (data.eval_fraction=0): name some with --data")
    return corpus.eval

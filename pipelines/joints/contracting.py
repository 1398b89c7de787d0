"""Documents of a plan's pilot are contracted as the augment stage does it, by the process that plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from augment.contexts.contractor import Contracted, Contractor
from augment.contexts.finding import contexts_of
from augment.feeding import worker
from augment.ledger.reading import collapse_duplicates, read_ledger
from augment.recipes.contracting import CONTRACTION_STEP
from augment.requests.contexts import Contexts
from augment.requests.contraction import contraction_request
from augment.requests.planner import TracePlanner
from pipelines.config import MillConfig
from pipelines.joints.asking import work_order
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import LedgerRow, ScoredSegment
from sharding.storage import clock


def contexts_here(
    config: MillConfig, planner: TracePlanner, documents: Sequence[tuple[Sequence[ScoredSegment], int]]
) -> Mapping[str, Contexts]:
    """What there is to show of some documents beside their segments, by id; contractions are made by this process.

    Args:
        documents: (all segments of one, how many of them are to be contracted).

    Raises:
        MillError: the engine can't be had here, or too much failed.
    """
    made = _contracted(config, planner, [(segments, number) for segments, number in documents if number])
    return {
        segments[0].doc_id: contexts_of(planner, segments, made.get(segments[0].doc_id, ()))
        for segments, _ in documents
    }


def _contracted(
    config: MillConfig, planner: TracePlanner, wanted: Sequence[tuple[Sequence[ScoredSegment], int]]
) -> Mapping[str, Sequence[str]]:
    """The contractions of documents, by id."""
    if planner.contraction is None or not wanted:
        return {}
    tokenizer = load_tokenizer(config.tokenizer)
    asked = [(contraction_request(planner, segments), segments[:number]) for segments, number in wanted]
    known: dict[str, list[LedgerRow]] = {request.request_key: [] for request, _ in asked}
    for row in read_ledger(config.ledger_url):
        if row.step == CONTRACTION_STEP and row.request_key in known:
            known[row.request_key].append(row)
    order = work_order(config, clock.now_s(config.ledger_url))
    contractor: Contractor[str] = Contractor(planner, config.feeding, order)
    contractor.begin()
    try:
        outcomes = [
            outcome
            for request, segments in asked
            for outcome in contractor.take(
                request.doc_id,
                request,
                [tokenizer.decode(segment.input_ids) for segment in segments],
                collapse_duplicates(known[request.request_key]),
            )
        ]
        outcomes += contractor.finish()
    except MillError as error:
        contractor.give_up(error)
        raise
    finally:
        contractor.leave()
        worker.close_all()
    return {outcome.subject: outcome.contractions for outcome in outcomes if isinstance(outcome, Contracted)}

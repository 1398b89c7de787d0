"""What a ledger holds of a run: the generations that its plan asks for, and those that it holds beside them.

A ledger keeps what other models, prompts and runs have made, and what a pilot tried. Of the plan's own models and
prompts a run's requests are named by its stage once that has finished; until then all are taken to be asked for but
those that the plan knows to be of its pilot alone.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.compute import field, scalar

from augment.ledger.parts import PART, PARTIAL_PART, every_part
from augment.ledger.reading import RANK
from sharding import storage
from sharding.errors import MillError
from sharding.records.families import LEDGER_SCHEMA, REQUESTS
from sharding.records.types import Request
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

_WANTED = ["key", "request_key", "sample", "tier", "thought_tokens", "wall_s", "finished_at"]
_MODEL_COLUMNS = {"model": "name", "revision": "revision", "engine": "engine"}
"""Column of the ledger → key of a model in the plan."""
_COLUMNS = (*_WANTED, *_MODEL_COLUMNS, "prompt", "prompt_version")


@dataclass(frozen=True, kw_only=True)
class Bought:
    """Generations of a ledger; arrays with an entry for each, duplicates left out.

    Attributes:
        tiers, models: names from the config.
        tokens: int64. wall_s, finished_at: float64, seconds.
    """

    tiers: np.ndarray
    models: np.ndarray
    tokens: np.ndarray
    wall_s: np.ndarray
    finished_at: np.ndarray

    def where(self, chosen: np.ndarray) -> Bought:
        """Those at these places, (n,) bool."""
        return Bought(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})


def read_bought(plan: dict[str, Any], output: str, augmented: Manifest | None) -> tuple[Bought, Bought]:
    """What the ledger holds of a plan's models and prompts: what the plan asks for, and what was bought beside it.

    Args:
        plan: as `read_plan` gives it.
        output: of the run.
        augmented: the manifest of its augment stage, None as long as that is under way.
    """
    table, models = _rows(plan)
    found = _bought(table, models)
    asked = _asked(table, plan, output, augmented)
    return found.where(asked), found.where(~asked)


def _bought(table: pa.Table, models: np.ndarray) -> Bought:
    return Bought(
        tiers=np.array(table["tier"].to_pylist(), object),
        models=models,
        tokens=table["thought_tokens"].to_numpy().astype(np.int64),
        wall_s=table["wall_s"].to_numpy(),
        finished_at=table["finished_at"].to_numpy(),
    )


def read_begun(plan: dict[str, Any]) -> Bought:
    """What there is of a plan's generations that were interrupted and aren't finished: spent, but no generations."""
    table, models = _rows(plan, PARTIAL_PART, {"thought_tokens": -1})
    if not len(table):
        return _bought(table, models)
    finished = [pa.Table.from_batches(batches)["key"] for _, batches in every_part(plan["ledger"], ["key"]) if batches]
    keys = pa.chunked_array([chunk for column in finished for chunk in column.chunks], pa.string())
    return _bought(table, models).where(~np.asarray(pc.is_in(table["key"], keys)))


def _rows(
    plan: dict[str, Any], kind: str = PART, rank: Mapping[str, int] = dict.fromkeys(RANK, 1)
) -> tuple[pa.Table, np.ndarray]:
    """The rows of the plan's models and prompts, and the name of each one's model in the config.

    Args:
        rank: of the rows with one key the one that is least in these columns, or with -1 greatest, is taken.
    """
    prompts = reduce(
        operator.or_,
        ((field("prompt") == name) & (field("prompt_version") == version) for name, version in plan["prompts"].items()),
        scalar(False),
    )
    found: dict[str, list[pa.Table]] = {name: [] for name in plan["models"]}
    for _, batches in every_part(plan["ledger"], _COLUMNS, kind=kind):
        if not batches:
            continue
        rows = pa.Table.from_batches(batches)
        for name in found:
            found[name].append(rows.filter(_by_model(plan, name) & prompts & _made_for(plan, name)).select(_WANTED))
    nothing = LEDGER_SCHEMA.empty_table().select(_WANTED)
    tables = [pa.concat_tables([nothing, *tables]) for tables in found.values()]
    table = pa.concat_tables([nothing, *tables])
    models = np.repeat(np.array(list(found), object), [len(each) for each in tables])
    codes = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort([*(sign * table[column].to_numpy() for column, sign in reversed(list(rank.items()))), codes])
    first = order[np.unique(codes[order], return_index=True)[1]]  # of the rows with one key the one that is kept
    return table.take(pa.array(first)), models[first]


def _asked(table: pa.Table, plan: dict[str, Any], output: str, augmented: Manifest | None) -> np.ndarray:
    """(rows,) bool, which of the rows the plan asks for."""
    keys = table["request_key"]
    requests = None if augmented is None else _requests(manifest.file_urls(output, augmented, REQUESTS.name))
    if requests is None:
        return ~np.asarray(pc.is_in(keys, pa.array(plan["beside"], pa.string())))
    names, samples = requests
    places = np.asarray(pc.fill_null(pc.index_in(keys, names), -1))
    wanted = np.append(samples, 0)[places]  # of what isn't there none
    return np.asarray(table["sample"].to_numpy() < wanted)


def _requests(urls: Sequence[str]) -> tuple[pa.Array, np.ndarray] | None:
    """The keys that a stage asked for and how many samples of each; None where its parts were taken away."""
    found: dict[str, int] = {}
    try:
        for url in urls:
            for batch in storage.read_batches(url, ["request_key", "samples"], kind=Request):
                columns = batch.to_pydict()
                for key, samples in zip(columns["request_key"], columns["samples"], strict=True):
                    found[key] = max(samples, found.get(key, 0))
    except MillError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return pa.array(found, pa.string()), np.array(list(found.values()), np.int64)


def _by_model(plan: dict[str, Any], name: str) -> pc.Expression:
    """Which rows were asked of a model. A server may have had another one answer: its name is then the row's."""
    model = plan["models"][name]
    named = field("model") == model["name"]
    if model["engine"] == "endpoint":
        named |= ~field("model").isin([other["name"] for other in plan["models"].values()])
    return named & (field("revision") == model["revision"]) & (field("engine") == model["engine"])


def _made_for(plan: dict[str, Any], name: str) -> pc.Expression:
    """Which rows are this model's, of those that name it as the ledger does.

    Two models of a config may be one to the ledger: the tier tells them apart, and rows of no tier of the plan count as
    made for the first one by name.
    """
    model = plan["models"][name]
    alike = [n for n, other in plan["models"].items() if all(other[k] == model[k] for k in _MODEL_COLUMNS.values())]
    if len(alike) == 1:
        return scalar(True)
    counted = alike[1:] if name == alike[0] else [name]
    in_tiers = field("tier").isin([tier for tier, planned in plan["tiers"].items() if planned["model"] in counted])
    return ~in_tiers if name == alike[0] else in_tiers

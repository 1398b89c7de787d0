"""What the card says for the public summary of training content that the EU's AI Act asks of a model's provider.

The sections are those of the template for Article 53(1)(d), which the Commission published in July 2025 and adopted as
C(2025) 8311: general information, the list of data sources, and data processing aspects; they are called as they are
there. A corpus knows some of it; what only the provider of a model knows is marked, and `card.training_content` gives
it by the number of the section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.terminal import counted
from sharding.storage.manifest import Manifest

TO_BE_FILLED_IN = "*to be filled in by the provider*"

SECTIONS = {
    "1.1": "provider identification",
    "1.2": "model identification: versioned names, dependencies, date of placement on the market of the Union",
    "1.3": "modalities, overall training data size and other characteristics: types of content, latest date of "
    "acquisition, languages",
    "2.1": "publicly available datasets",
    "2.2": "private non-publicly available datasets obtained from third parties: commercially licensed by "
    "rightsholders or their representatives (2.2.1), or obtained from others (2.2.2)",
    "2.3": "data crawled and scraped from online sources",
    "2.4": "user data",
    "2.5": "synthetic data",
    "2.6": "other sources of data",
    "3.1": "respect of reservation of rights from text and data mining exception or limitation",
    "3.2": "removal of illegal content",
    "3.3": "other information",
}
"""Number of a section of the template → what it asks for."""

_SIZES = ((10**9, "less than 1 billion tokens"), (10**13, "1 billion to 10 trillion tokens"))
"""Tokens below the number → the template's range for text."""


def training_content(stages: Mapping[str, Manifest]) -> Iterator[tuple[str, str, str]]:
    """(number, what is asked for, what is known of it) of every section.

    Args:
        stages: the four manifests.
    """
    given = stages["pack"].config["card"].get("training_content") or {}
    known = {
        "1.3": _size(stages["pack"]),
        "2.1": _public(stages),
        "2.5": _synthetic(stages),
        "2.6": _sources(stages["score"]),
        "3.3": _processing(stages),
    }
    for number, asked in SECTIONS.items():
        parts = [known.get(number, ""), given.get(number, "") or (TO_BE_FILLED_IN if number in _PROVIDERS else "")]
        yield number, asked, " ".join(filter(None, parts)) or "none known"


_PROVIDERS = ("1.1", "1.2", "1.3", "2.2", "2.3", "2.4", "3.1", "3.2")
"""Sections that the manifests can't answer, or not all of."""


def _size(packed: Manifest) -> str:
    counts, languages = packed.counts, packed.config["card"]["language"]
    tokens = counts.get("tokens_source", 0) + counts.get("tokens_thought", 0)
    size = next((name for limit, name in _SIZES if tokens < limit), "more than 10 trillion tokens")
    spoken = f" Languages: {', '.join(languages)}." if languages else ""
    return f"Text; {size} ({tokens:,} of the training tokenizer, copies counted).{spoken}"


def _public(stages: Mapping[str, Manifest]) -> str:
    hub = [f"https://huggingface.co/datasets/{name}" for name in stages["pack"].config["card"]["source_datasets"]]
    return f"Named by the owner of the corpus: {', '.join(hub)}." if hub else TO_BE_FILLED_IN


def _synthetic(stages: Mapping[str, Manifest]) -> str:
    counts, card = stages["pack"].counts, stages["pack"].config["card"]
    models = [f"{model['name']} {model['revision']}" for model in stages["augment"].facts["models"].values()]
    if not counts.get("tokens_thought", 0):
        return "None in this corpus."
    licence = card.get("generator_license")
    said = f" Licence of the generators: {licence}." if licence else ""
    thoughts = f"{counts.get('thoughts', 0):,} thoughts of {counts['tokens_thought']:,} tokens"
    return f"{thoughts} about the documents, written by {', '.join(models)}.{said}"


def _sources(scored: Manifest) -> str:
    sources = scored.config.get("sources") or [scored.config.get("source")]
    paths = [source["path"] for source in sources if isinstance(source, Mapping) and source.get("path")]
    return f"Read from {', '.join(f'`{path}`' for path in paths)}; which kind each is says its owner." if paths else ""


def _processing(stages: Mapping[str, Manifest]) -> str:
    scored, selected = stages["score"].counts, stages["select"]
    said = [f"{scored.get('quarantined', 0):,} records refused, {scored.get('duplicates_dropped', 0):,} copies dropped"]
    if selected.facts.get("decontamination"):
        number = selected.counts.get("documents_contaminated", 0)
        said.append(f"{number:,} documents found to overlap with benchmarks")
    said.append(f"{selected.counts['rejected']:,} of {selected.counts['candidates']:,} generated thoughts rejected")
    if removed := sum(removal["documents"] for removal in stages["pack"].facts.get("removals", [])):
        said.append(f"{counted(removed, 'document')} taken down from the finished corpus")
    return "; ".join(said) + "."


def responsible(stages: Mapping[str, Manifest]) -> dict[str, Any]:
    """The known fields of Croissant's vocabulary for responsible AI, http://mlcommons.org/croissant/RAI/1.0.

    Args:
        stages: the four manifests.
    """
    scored, selected, packed = stages["score"], stages["select"], stages["pack"]
    card, counts, records = packed.config["card"], packed.counts, scored.counts
    models = stages["augment"].facts["models"].values()
    limits = ["Thoughts are generated text and may be wrong."]
    if packed.rehearsal:
        limits.append("A rehearsal: difficulty or traces are made up; not for training.")
    if not selected.facts.get("decontamination"):
        limits.append("Not compared with any benchmark.")
    fields = {
        "dataCollection": "Raw text scored token by token; reasoning generated for hard segments.",
        "dataCollectionRawData": _sources(scored),
        "dataPreprocessingProtocol": [
            f"{records['documents_in']:,} records gave {records['documents']:,} documents; "
            f"{records.get('quarantined', 0):,} refused, {records.get('duplicates_dropped', 0):,} copies dropped.",
            f"Packed into {counts['rows']:,} sequences of {packed.config['pack']['sequence_length']:,} tokens.",
        ],
        "dataAnnotationProtocol": f"Of {selected.counts['candidates']:,} generated thoughts "
        f"{selected.counts['kept']:,} passed the gates and were chosen.",
        "machineAnnotationTools": [f"{model['name']} {model['revision']} ({model['engine']})" for model in models],
        "dataBiases": ["Thoughts carry the biases of their generators.", *filter(None, [card.get("biases")])],
        "dataLimitations": limits,
        "dataUseCases": "Pretraining and mid-training of language models.",
        "personalSensitiveInformation": card.get("personal_information"),
    }
    return {f"rai:{name}": value for name, value in fields.items() if value}

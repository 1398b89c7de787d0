"""The map of an output folder: where everything in it is.

OUTPUT/
├── MANIFEST.json, _SUCCESS, data/          the corpus, later epochs of it in data/epoch-*/, with
├── index/            documents-*           which document is where in it, and
├── README.md, croissant.json, config.yaml  its card
├── MANIFEST.json.sig, MANIFEST.json.pub    of `thoughtmill sign`
├── provenance/       PROVENANCE.json, documents-*, thoughts-*   of `thoughtmill provenance`
├── difficulty.json, pilot.json, report.html
├── arms/             arms.json and NAME/   of `thoughtmill arms`: each arm an output
├── deliveries/N/     of `thoughtmill append`: later documents, each delivery an output whose shards the manifest names
├── ablation/         ablation.json and ARM/SEED/   of `thoughtmill ablate`: the curves of its students
├── ledger/                                 generations, unless `ledger.path` says otherwise
└── stages/
    ├── removed.json, removal/              of `thoughtmill remove`: whom to leave out; while it is under way
    ├── RUNNING.json, progress.json, .shuffle-STAGE/, .outcome-STAGE-*   of the run at work
    ├── score/    MANIFEST.json, segments-*, quarantine-*, memory.arrow, sources.json, tokenizer/, .sample/,
    │             .earlier/
    ├── augment/  MANIFEST.json, requests-*, quarantine-*, plan.json, drift.json, alive/
    ├── select/   MANIFEST.json, kept-*, rejected-*, contaminated-*
    ├── retrieval/    index.json, passages-*   where tiers show passages
    └── gain/     model.json, steps.json    of `thoughtmill plan --explore`; the steps that it makes of the corpus
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from sharding.errors import RequestError
from sharding.storage.files import filesystem, join, list_names

MANIFEST_NAME = "MANIFEST.json"
SUCCESS_NAME = "_SUCCESS"
EPOCH_FOLDER = "epoch-"


@dataclass(frozen=True)
class Output:
    """An output folder by its URL, and the URLs of what is in it."""

    root: str

    def check_links(self) -> None:
        """Refuse to run in an output with a link in the place of a folder: what is made and removed would be elsewhere.

        Raises:
            RequestError: there is one; names it.
        """
        folders = (
            self.data,
            self.index,
            self.ledger,
            join(self.root, "arms"),
            join(self.root, "ablation"),
            self.deliveries,
            self.provenance,
            self.stages,
            self.alive,
            self.retrieval,
        )
        for folder in (*folders, *map(self.stage, ("score", "augment", "select")), self.earlier, self.sample):
            fs, path = filesystem(folder)
            if isinstance(fs, LocalFileSystem) and Path(path).is_symlink():
                raise RequestError(
                    f"output: {folder} is a link to {Path(path).readlink()}; a run writes and removes within its "
                    "output alone: replace the link by a folder"
                )

    @property
    def stages(self) -> str:
        """The folder of all stages' folders, and of what is of the run at work."""
        return join(self.root, "stages")

    def stage(self, stage: str) -> str:
        """The folder of a stage: pack's result is the output itself."""
        return self.root.rstrip("/") if stage == "pack" else join(self.root, "stages", stage)

    def manifest(self, stage: str) -> str:
        return join(self.stage(stage), MANIFEST_NAME)

    @property
    def tombstones(self) -> str:
        """Which documents were taken down, by hashes of their ids, and when."""
        return join(self.root, "stages", "removed.json")

    @property
    def removal(self) -> str:
        """The folder of a removal that is under way."""
        return join(self.root, "stages", "removal")

    @property
    def removal_journal(self) -> str:
        """What a removal has prepared, and goes on with whatever happens."""
        return join(self.removal, "REMOVAL.json")

    def shuffle(self, purpose: str) -> str:
        """A folder for what goes from one step of a stage to the next on the local runner."""
        return join(self.root, "stages", f".shuffle-{purpose}")

    def outcome(self, stage: str, run: str) -> str:
        """What a stage's pipeline tells the process that submitted it."""
        return join(self.stages, f".outcome-{stage}-{run}")

    def arm(self, name: str) -> str:
        """The output of an arm."""
        return join(self.root, "arms", name)

    @property
    def deliveries(self) -> str:
        """The folder of later deliveries of documents."""
        return join(self.root, "deliveries")

    def delivery(self, number: int) -> str:
        """The output of a later delivery of documents, numbered from 1."""
        return join(self.root, "deliveries", str(number))

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the output in which files are made, without the ledger."""
        stages = (self.stages, *(self.stage(name) for name in ("score", "augment", "select")))
        return self.root, self.data, self.index, *stages, self.alive

    @property
    def success(self) -> str:
        """An empty file that is there when the corpus is whole."""
        return join(self.root, SUCCESS_NAME)

    @property
    def data(self) -> str:
        """The folder of the shards."""
        return join(self.root, "data")

    def data_folder(self, epoch: int) -> str:
        """The folder of the shards of an epoch: epoch 0 is the corpus itself, others are below it."""
        return join(self.data, f"{EPOCH_FOLDER}{epoch}") if epoch else self.data

    def data_folders(self) -> list[str]:
        """All folders of shards that are there."""
        later = [name for name in list_names(self.data) if name.startswith(EPOCH_FOLDER)]
        return [self.data, *(join(self.data, name) for name in later)]

    @property
    def index(self) -> str:
        """The folder of the index: in which shard and row each document is."""
        return join(self.root, "index")

    @property
    def signature(self) -> str:
        """The signature of the corpus's manifest."""
        return join(self.root, f"{MANIFEST_NAME}.sig")

    @property
    def public_key(self) -> str:
        """The key that it can be checked with."""
        return join(self.root, f"{MANIFEST_NAME}.pub")

    @property
    def provenance(self) -> str:
        """The folder of what every document and thought came from."""
        return join(self.root, "provenance")

    @property
    def provenance_manifest(self) -> str:
        return join(self.provenance, "PROVENANCE.json")

    @property
    def card(self) -> str:
        return join(self.root, "README.md")

    @property
    def croissant(self) -> str:
        return join(self.root, "croissant.json")

    @property
    def config(self) -> str:
        """The resolved config."""
        return join(self.root, "config.yaml")

    @property
    def difficulty(self) -> str:
        """Histogram and quantiles of difficulty, cut points, and what each tier is expected to spend."""
        return join(self.root, "difficulty.json")

    @property
    def pilot(self) -> str:
        """What a pilot measured."""
        return join(self.root, "pilot.json")

    @property
    def gain(self) -> str:
        """What an exploring pilot taught of the gain of each tier."""
        return join(self.root, "stages", "gain", "model.json")

    @property
    def steps(self) -> str:
        """How many segments could take which step from tier to tier at which expected gain for its cost."""
        return join(self.root, "stages", "gain", "steps.json")

    @property
    def retrieval(self) -> str:
        """The folder of the index of passages."""
        return join(self.root, "stages", "retrieval")

    @property
    def passages(self) -> str:
        """What the index of passages is made of; there when it is whole."""
        return join(self.retrieval, "index.json")

    @property
    def report(self) -> str:
        return join(self.root, "report.html")

    @property
    def arms(self) -> str:
        """What the arms were and came to."""
        return join(self.root, "arms", "arms.json")

    @property
    def ablation(self) -> str:
        """What students learned from the arms."""
        return join(self.root, "ablation", "ablation.json")

    @property
    def ledger(self) -> str:
        """The folder of the ledger, unless the config names another."""
        return join(self.root, "ledger")

    @property
    def lease(self) -> str:
        """Who is at work on this output."""
        return join(self.root, "stages", "RUNNING.json")

    @property
    def progress(self) -> str:
        """How far the run at work is."""
        return join(self.root, "stages", "progress.json")

    @property
    def memory(self) -> str:
        """The n-gram memory, beside the scores; `difficulty.memory_path` of a later run may name it."""
        return join(self.stage("score"), "memory.arrow")

    @property
    def listed(self) -> str:
        """The files of the sources as they were when they were scored, by hashes."""
        return join(self.stage("score"), "sources.json")

    @property
    def earlier(self) -> str:
        """The folder of the scores of an earlier state of the corpus, while they are used for a later one."""
        return join(self.stage("score"), ".earlier")

    @property
    def sample(self) -> str:
        """The folder of the scores that a plan has made of a sample."""
        return join(self.stage("score"), ".sample")

    @property
    def tokenizer(self) -> str:
        """The folder of the training tokenizer, for who reads the scores where no such model is."""
        return join(self.stage("score"), "tokenizer")

    @property
    def plan(self) -> str:
        """What the augment stage is about to generate."""
        return join(self.stage("augment"), "plan.json")

    @property
    def drift(self) -> str:
        """What is no longer as the pilot promised, in the run that generated last."""
        return join(self.stage("augment"), "drift.json")

    @property
    def alive(self) -> str:
        """The folder of the workers' heartbeats."""
        return join(self.stage("augment"), "alive")

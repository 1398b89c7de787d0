"""What datatrove's readers read: WARC, CSV and what else they know, a file at a time. Needs `thoughtmill[datatrove]`.

Each file is one unit: their readers know no byte ranges. Which files there are, and whether they have changed, is found
out as with every other format, and a chained URL or one of another store is opened by fsspec in the reader, too.

What a reader leaves out it mostly tells nobody. Records that come out are told by their numbers where the reader gives
them ("FILE/NUMBER"); for WARC the records of the file are counted beside, so that those that hold a page and gave no
document are in quarantine as `left_out`. Warnings of a reader are shown as ours, once for each text. What it doesn't
tell, of formats other than WARC, is lost without a word: `docs/sources.md` says what.
"""

from __future__ import annotations

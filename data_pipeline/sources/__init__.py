"""Where structures come from: listed as small values (`Entry`) that any process can read.

| module | reads |
|---|---|
| local, archives | folders, tars, files |
| remote, listing | URLs, lists of places |
| accessions | AlphaFold models by UniProt accession |
| foldcomp_database, foldcomp_worker | Foldcomp databases |
| downloads, transport, pace | the cache, its connections and their rate |
| versions | which of several versions of a model counts |
"""

from data_pipeline.sources.ahead import reading_ahead
from data_pipeline.sources.entries import Entry, Source, read_entry, read_named_entry
from data_pipeline.sources.opening import configured_source, open_source
from data_pipeline.sources.versions import mark_superseded

__all__ = [
    "Entry",
    "Source",
    "configured_source",
    "mark_superseded",
    "open_source",
    "read_entry",
    "read_named_entry",
    "reading_ahead",
]

"""What is set for each collection, and whether it fits its records and what clients ask for."""

from collections.abc import Callable

from gateway.chroma.collection_facts import CollectionFacts, EmbeddingFunction
from gateway.observability.check.answers import Answer, failed, named, passed, warned
from gateway.observability.check.facts import Collections, Facts, known

# `chromadb/utils/embedding_functions/__init__.py`: one model under two names.
_DEFAULT_FUNCTIONS = ("default", "onnx_mini_lm_l6_v2")
_DEFAULT_DIMENSION = 384
# As the providers' own pages say. Of other models nothing is said.
_DIMENSIONS = {
    ("openai", "text-embedding-ada-002"): 1536,
    ("openai", "text-embedding-3-small"): 1536,
    ("openai", "text-embedding-3-large"): 3072,
    ("sentence_transformer", "all-MiniLM-L6-v2"): 384,
    ("sentence_transformer", "all-MiniLM-L12-v2"): 384,
    ("sentence_transformer", "all-mpnet-base-v2"): 768,
    ("cohere", "embed-english-v3.0"): 1024,
    ("cohere", "embed-multilingual-v3.0"): 1024,
    ("cohere", "embed-english-light-v3.0"): 384,
    ("cohere", "embed-multilingual-light-v3.0"): 384,
}

_LEAST_NORMS = 8
_NORM_TOLERANCE = 1e-3
# docs.trychroma.com/guides/performance/hnsw-tuning: from there on the defaults are not what it recommends.
_LARGE_RECORDS = 500_000
_DEFAULT_NEIGHBORS, _DEFAULT_EF = 16, 100
_SMALL_RECORDS = 10_000
_DEFAULT_RESULTS = 10  # `chromadb/api/models/Collection.py`, `query`
_LEAST_RECORDS = 100
_LEAST_QUERIES = 20
_MOSTLY = 0.8
_KEYS_NAMED = 10


def embedding_function(facts: Facts) -> Answer:
    """Whether Chroma's default function makes the embeddings of a collection."""

    def is_default(each: CollectionFacts) -> bool:
        return (
            each.collection.dimension == _DEFAULT_DIMENSION
            and each.function is not None
            and each.function.name in _DEFAULT_FUNCTIONS
        )

    return _verdict(
        facts,
        is_default,
        failed,
        "have the default embedding function: a small model for English that reads the first 256 tokens of a document",
        "choose a model for your texts, name it as `embedding_function` of a new collection, and add all again",
        "no collection has the default embedding function",
    )


def dimension(facts: Facts) -> Answer:
    """Whether the embedding function of a collection makes vectors of the length that its records have."""

    def fits_not(each: CollectionFacts) -> bool:
        made = _dimension(each.function) if each.function else None
        return None not in (made, each.collection.dimension) and made != each.collection.dimension

    return _verdict(
        facts,
        fits_not,
        warned,
        "name an embedding function whose vectors have another length than their records: a query by text fails",
        "give `embedding_function` of the model that made the vectors where the collection is opened and created",
        "where the length is known, functions and records agree",
    )


def distance(facts: Facts) -> Answer:
    """Whether texts whose vectors have the length 1 are compared by squared Euclidean distance."""

    def is_l2(each: CollectionFacts) -> bool:
        return (
            each.settings.space == "l2"
            and each.has_documents
            and len(each.norms) >= _LEAST_NORMS
            and all(abs(norm - 1) < _NORM_TOLERANCE for norm in each.norms)
        )

    return _verdict(
        facts,
        is_l2,
        warned,
        "compare texts by `l2`, and their vectors have the length 1: results have the"
        " order of `cosine` and twice its distances, so thresholds and scores made for `cosine` are wrong",
        "create them with `cosine` and add all again, or take half of each distance",
        "no normalised text embeddings are compared by `l2`",
    )


def index_settings(facts: Facts) -> Answer:
    """Whether the HNSW parameters fit the number of records."""

    def is_too_small(each: CollectionFacts) -> bool:
        settings, records = each.settings, each.collection.records
        return (
            (
                records >= _LARGE_RECORDS
                and settings.neighbors <= _DEFAULT_NEIGHBORS
                and settings.ef_search <= _DEFAULT_EF
            )
            or (records >= _SMALL_RECORDS and settings.ef_search < _DEFAULT_RESULTS)
            or settings.ef_construction < settings.neighbors
        )

    return _verdict(
        facts,
        is_too_small,
        warned,
        "have HNSW parameters for fewer records: queries miss some of the nearest",
        "raise `ef_search` with `collection.modify`; for 500,000 records and more, create it anew with"
        " max_neighbors 32, ef_construction 400 and ef_search 200",
        "the HNSW parameters fit the number of records",
    )


def metadata(facts: Facts) -> Answer:
    """Whether a collection's records have metadata."""

    def has_none(each: CollectionFacts) -> bool:
        return each.collection.records >= _LEAST_RECORDS and not each.has_metadata and not each.keys

    return _verdict(
        facts,
        has_none,
        warned,
        "have records without any metadata: they can neither be filtered nor be deleted by their source",
        "write at least the source of each record as its metadata",
        f"the collections of {_LEAST_RECORDS} records and more have metadata",
    )


def filters(facts: Facts) -> Answer:
    """Whether nearly all queries of a collection with records find nothing, which only a filter can do."""
    queried = known(facts.queried)
    seen = sum(each.total for each in queried)
    found = [
        each
        for each in queried
        if each.total >= _LEAST_QUERIES
        and each.nothing >= _MOSTLY * each.total
        # It had records before the first of these queries.
        and each.facts.oldest is not None
        and each.facts.oldest < each.since
    ]
    if found:
        keys = sorted({key for each in found for key in each.facts.keys or ()})
        has = f"its records have the keys {', '.join(keys[:_KEYS_NAMED])}" if keys else "its records have no metadata"
        return warned(
            f"{found[0].nothing} of {found[0].total} queries of {found[0].facts.name} found nothing, though it has"
            f" {found[0].facts.collection.records} records: their filter fits none",
            f"compare keys, values and their types in `where` with the records; {has}",
            named([each.facts.name for each in found]),
        )
    return passed(f"{seen} queries were seen in this hour and the one before, and none is always in vain")


def _dimension(function: EmbeddingFunction) -> int | None:
    if function.dimension is not None:
        return function.dimension
    if function.name in _DEFAULT_FUNCTIONS:
        return _DEFAULT_DIMENSION
    return _DIMENSIONS.get((function.name, function.model))


def _verdict(
    facts: Facts,
    is_wrong: Callable[[CollectionFacts], bool],
    answer: Callable[[str, str, str], Answer],
    message: str,
    advice: str,
    all_right: str,
) -> Answer:
    """`answer` with `message` and `advice` if a collection is wrong, else a pass that says `all_right`."""
    collections = known(facts.collections)
    if names := [each.name for each in collections.looked_at if is_wrong(each)]:
        return answer(f"{len(names)} collection(s) {message}", advice, named(names))
    return passed(f"{all_right}{_of(collections)}")


def _of(collections: Collections) -> str:
    looked_at = len(collections.looked_at)
    if looked_at == collections.total:
        return f" ({looked_at} looked at)"
    return f" (the {looked_at} largest of {collections.total} looked at)"


RULES = (embedding_function, dimension, distance, index_settings, metadata, filters)

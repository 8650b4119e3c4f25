"""The entries of a split: the sources of its rows, and how each source is read."""

from dataclasses import dataclass

from rmtrain.recipe.data_schema import DataSection


@dataclass(frozen=True)
class Entry:
    """One source of a split. A split that is not a mixture has one entry without a name."""

    section: DataSection  # by which its rows are read; `source` is the entry's own
    split: str  # the source's name of the split
    named: bool = True  # whether to refuse a source without splits; otherwise its rows are the split
    name: str = ""
    limit: int | None = None  # groups
    weight: float | None = None
    tags: tuple[str, ...] = ()

    def group_id(self, row_id: str) -> str:
        """The id of a row in its split, which differs between entries with the same row ids."""
        return f"{self.name}/{row_id}" if self.name else row_id

    def group_source(self, source: str) -> str:
        """The key for figures by source: the row's entry, and within it the row's own source."""
        return "/".join(filter(None, (self.name, source)))


def entries_of(data: DataSection, split: str) -> list[Entry]:
    """The entries of a split of a recipe; none if no source is named for it."""
    name = {str(key): value for key, value in data.splits.items()}.get(split, split)
    if not isinstance(data.source, dict):
        return [Entry(data, name)]
    if mixed := data.entries(split):
        return [
            Entry(
                section=data.of_entry(entry),
                split=entry.split or name,
                named=entry.split is not None,
                name=entry.title,
                limit=entry.limit,
                weight=entry.weight,
                tags=tuple(entry.tags),
            )
            for entry in mixed
        ]
    source = data.source.get(split)
    return [] if source is None else [Entry(data.model_copy(update={"source": source}), name, named=False)]

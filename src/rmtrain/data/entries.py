"""The entries of a split: the sources that its rows come from, and how each of them is read."""

from dataclasses import dataclass, field

from rmtrain.recipe.data_schema import DataSection


@dataclass(frozen=True)
class Entry:
    """One source of a split. A split that is no mixture has one entry, without a name."""

    section: DataSection  # by which its rows are read; `source` is the entry's own
    split: str  # the source's name of the split
    named: bool = True  # whether a source without splits is refused; else it is the split, whatever its name
    name: str = ""
    limit: int | None = None  # groups
    weight: float | None = None
    tags: tuple[str, ...] = field(default=())

    def group_id(self, row_id: str) -> str:
        """The id of a row in its split: entries may have rows of the same id."""
        return f"{self.name}/{row_id}" if self.name else row_id

    def group_source(self, source: str) -> str:
        """What the figures of a row are broken down by: its entry, and within it the row's own source."""
        return "/".join(filter(None, (self.name, source)))


def entries_of(data: DataSection, split: str) -> list[Entry]:
    """The entries of a split of a recipe; none if no source is named for it."""
    name = {str(key): value for key, value in data.splits.items()}.get(split, split)
    if not isinstance(data.source, dict):
        return [Entry(data, name)]
    if mixed := data.entries(split):
        return [
            Entry(
                data.of_entry(each),
                each.split or name,
                each.split is not None,
                each.title,
                each.limit,
                each.weight,
                tuple(each.tags),
            )
            for each in mixed
        ]
    source = data.source.get(split)
    return [] if source is None else [Entry(data.model_copy(update={"source": source}), name, named=False)]

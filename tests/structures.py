"""Entries of `structures`, by the words that they do not have as `none`."""


def words(
    opponents: str = "none", evolving: str = "none", detector: str = "none", transform: str = "none"
) -> dict[str, str]:
    return {"opponents": opponents, "evolving": evolving, "detector": detector, "transform": transform}

"""This makes entries of `structures` of the words that are not `none`."""


def words(
    opponents: str = "none", evolving: str = "none", detector: str = "none", transform: str = "none"
) -> dict[str, str]:
    return {"opponents": opponents, "evolving": evolving, "detector": detector, "transform": transform}

"""The study of masked and padded features: the article's tables beside ours, a report of its own."""

from sparring.layout import HERE, Layout
from sparring.mask_padding import rows_of
from sparring.params.masking import Study


def write(study: Study, layout: Layout = HERE) -> None:
    list(rows_of(study, layout))

"""Escape names for Markdown and LaTeX; a character that no page can hold becomes its code point.

lettering.py does the same for figures, and jinja2 for web pages.
"""

import re
import unicodedata

# The first line is markup wherever it stands, the others only in such a place: `online_pgd`, `0.8 [0.7, 0.9]` and
# `<0.001` stay as they are. `$` begins a formula on GitHub.
MARKDOWN = re.compile(
    r"[\\`*|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is no emphasis
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])"
    r"|^(?:[#>]|[-+](?=\s)|-(?=-)|\d+[.)](?=\s))",
    re.ASCII,
)
LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",  # it and the next two are other characters in TeX's own font encoding
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
}
LATEX_KNOWS = "–—‘’“”…€"  # beside Latin letters; pdflatex stops at a character that it does not know


def code_point(character: str) -> str:
    """Return a character's code point, as in U+1F600."""
    return f"U+{ord(character):04X}"


def printable(text: str, spared: str = "") -> str:
    """Replace line breaks, other controls and halves of surrogate pairs by code points, except those in `spared`.

    Halves of surrogate pairs stand in names of folders that are not UTF-8.
    """
    hidden = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(
        code_point(character) if unicodedata.category(character) in hidden and character not in spared else character
        for character in text
    )


def markdown(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, also at the start of a line and in the cell of a table."""
    return MARKDOWN.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", printable(text))


def latex(text: str) -> str:
    """Escape a text so that LaTeX prints it as it is, also at the start of a row.

    Characters beyond Latin letters become code points, as pdflatex knows none of them.
    """
    escaped = "".join(
        LATEX.get(character, character) if character <= "\u017f" or character in LATEX_KNOWS else code_point(character)
        for character in printable(text)
    )
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped  # \\[ and \\* are commands

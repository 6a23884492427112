"""Names as text: what is markup in Markdown or LaTeX is escaped, what no page can hold stands as its code point.

Figures have their own way (lettering.py); web pages are escaped by jinja2.
"""

import re
import unicodedata

# What is markup wherever it stands, and what only where it stands so: `online_pgd`, `0.8 [0.7, 0.9]` and `<0.001` stay
# as they are. `$` begins a formula on GitHub.
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
    """As in U+1F600."""
    return f"U+{ord(character):04X}"


def printable(text: str, spared: str = "") -> str:
    """The text with line breaks, other controls and halves of surrogate pairs as code points, but those in `spared`.

    Halves of pairs stand in names of folders that are not UTF-8.
    """
    hidden = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(
        code_point(character) if unicodedata.category(character) in hidden and character not in spared else character
        for character in text
    )


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, also at the start of a line and in the cell of a table."""
    return MARKDOWN.sub(lambda markup: f"{markup[0][:-1]}\\{markup[0][-1]}", printable(text))


def latex(text: str) -> str:
    """Text that LaTeX prints as it is, also at the start of a row.

    Characters beyond Latin letters stand as code points, as pdflatex knows none of them.
    """
    escaped = "".join(
        LATEX.get(character, character) if character <= "\u017f" or character in LATEX_KNOWS else code_point(character)
        for character in printable(text)
    )
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped  # \\[ and \\* are commands

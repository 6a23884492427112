"""These tests hold the rules of the house: no import runs upwards, each stage's deps are the modules whose code decides
its bytes, and git keeps little of what is generated."""

import ast
import graphlib
import re
import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sparring"
STUDIES = ("table3", "leave_one_out", "mask_padding", "evolving")
PIPELINES = ("dvc.yaml", *(f"studies/{name}/dvc.yaml" for name in STUDIES))  # all run in the main folder
# The most lines of a module and of a function.
MODULE, FUNCTION = 320, 50
# The most lines of a file of tests or of their helpers.
TESTS = 500
# The floors begin at the ground. A folder's modules stand on its floor, but for those that are named themselves.
FLOORS = [
    {"params"},
    {"layout", "report/escape", "report/lettering"},
    {"capture", "device", "store", "data/sources", "evaluation/programs"},
    {"progress", "checkpoints", "distributed", "data/decode", "data/splits", "data/draws", "data/augmentation"},
    {"data/transforms"},
    {"models"},
    {"attacks"},
    {"data"},
    {"training", "attacks/generation"},
    {"defences"},
    {"evaluation", "profiles"},
    {"mask_padding", "evolving"},
    {"statistics"},
    {
        "report/read",
        "report/table",
        "report/differences",
        "report/figure",
        "report/page",
        "report/publish",
        "report/paper",
    },
    {"report/results", "report/checks", "report/detection", "report/masking_facts", "report/masking_tables"},
    {"report/masking_curve", "report/masking_words"},
    {"report"},  # its sections
    {"report/render", "report/compare"},
    {"audit"},
]
# These modules check, name, report and resume, and decide no byte of a stage's results.
PLUMBING = {"params", "layout", "progress", "checkpoints"}
DECIDING = {"params/masking", "params/evolving"}  # but these decide what each net of their studies is


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file, or a folder of files, imports, as `attacks/pgd`, or a folder for
    names of its __init__."""
    modules_imported: set[str] = set()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparring":
                above = str(node.module).partition(".")[2].replace(".", "/")
                inner = {f"{above}/{name.name}".lstrip("/") for name in node.names}
                modules = {name for name in inner if module(name).exists()}
                modules_imported |= modules | ({above} if above and modules != inner else set())
    return {name for name in modules_imported if module(name) != path and path not in module(name).parents}


def module(name: str) -> Path:
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"


# The package's files by the names under which they are imported: `attacks/pgd`, and `attacks` for its __init__.
FILES = {
    (path.parent if path.stem == "__init__" else path.with_suffix("")).relative_to(PACKAGE).as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
}


def floor(name: str) -> int | None:
    for part in (name, *(str(above) for above in PurePosixPath(name).parents)):
        for number, modules in enumerate(FLOORS):
            if part in modules:
                return number
    return None


@pytest.mark.parametrize("name", FILES)
def test_no_import_runs_upwards(name: str) -> None:
    own_floor = floor(name)
    assert own_floor is not None, f"{name} has no floor; give it one"
    for imported in imports(FILES[name]):
        imported_floor = floor(imported)
        is_beside = imported_floor == own_floor and imported.partition("/")[0] == name.partition("/")[0]
        assert imported_floor is not None and (imported_floor < own_floor or is_beside), f"{name} imports {imported}"


def test_no_section_of_the_report_imports_another() -> None:
    sections = {name for name in FILES if floor(name) == floor("report")} - {"report"}
    assert {"report/overview", "report/whitebox", "report/table3"} <= sections
    for name in sections:
        assert not imports(FILES[name]) & sections, name


def test_no_imports_run_in_a_circle() -> None:
    graphlib.TopologicalSorter({name: imports(file) & set(FILES) for name, file in FILES.items()}).prepare()


@pytest.mark.parametrize("name", FILES)
def test_modules_and_functions_are_short(name: str) -> None:
    text = FILES[name].read_text()
    assert len(text.splitlines()) <= MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = int(node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION, f"{node.name} has {length} lines"


def test_files_of_tests_are_short() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        assert len(path.read_text().splitlines()) <= TESTS, name


def stages() -> dict[str, dict]:
    stages_by_name = {}
    for pipeline in PIPELINES:
        defined = YAML(typ="safe").load(ROOT / pipeline)["stages"]
        stages_by_name |= {f"{pipeline}:{name}": stage.get("do", stage) for name, stage in defined.items()}
    return stages_by_name


def as_folders(files: set[str]) -> set[str]:
    """Replace the package's files by their folder where all of its files are there, which keeps dvc.lock short: DVC
    reads and writes all of it at every stage."""
    for folder in {ROOT / PurePosixPath(name).parent for name in files if name.endswith(".py")} - {PACKAGE}:
        inside = {file.relative_to(ROOT).as_posix() for file in folder.glob("*.py") if file.name != "__init__.py"}
        if PACKAGE in folder.parents and len(inside) > 1 and inside <= files:
            files = (files - inside) | {folder.relative_to(ROOT).as_posix()}
    return files


@pytest.mark.parametrize("name", sorted(stages()))
def test_a_stage_depends_on_the_code_that_decides_its_bytes_and_no_other(name: str) -> None:
    stage = stages()[name]
    script = ROOT / stage["cmd"].split()[1]
    reached, unread = set(), imports(script)
    while unread:
        imported = unread.pop()
        reached.add(imported)
        unread |= imports(module(imported)) - reached
    reached -= {name for name in reached - DECIDING if {str(above) for above in PurePosixPath(name).parents} & reached}
    wanted = {script.relative_to(ROOT).as_posix()}
    wanted |= {
        module(imported).relative_to(ROOT).as_posix()
        for imported in reached
        if imported in DECIDING or imported.partition("/")[0] not in PLUMBING
    }
    if "report/page" in reached:
        wanted.add("src/sparring/report/page.html")
    wanted = as_folders(wanted)
    listed = {dep for dep in stage["deps"] if dep.startswith("src/") or dep.endswith(".py")}
    assert listed == wanted


def test_stages_that_ask_a_structure_depend_on_the_transform_it_predicts_through() -> None:
    asking = {name: stage for name, stage in stages().items() if "src/sparring/evaluation/predict.py" in stage["deps"]}
    asking = {name: stage for name, stage in asking.items() if name.startswith("dvc.yaml:")}
    assert len(asking) == 4
    for name, stage in asking.items():
        assert {"structures.${key}", "${item.transform}"} <= set(stage["params"]), name


def test_nothing_is_unpickled() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "stages").glob("*.py"), *(ROOT / "studies").rglob("*.py")]:
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        assert not re.search(r"import pickle|pickle\.|allow_pickle=True|torch\.export\.load\((?!_sanitised\()", text), (
            path
        )


def tracked() -> list[Path]:
    """Return the files that git keeps and that exist."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone: git keeps nothing here")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert len(files) > 100
    return [file for file in files if file.exists()]


def test_git_keeps_little() -> None:
    sizes = {file: file.stat().st_size for file in tracked()}
    assert sum(sizes.values()) < 4_000_000
    results = Counter()
    for file, size in sizes.items():
        if file.is_relative_to(ROOT / "docs/results"):
            results[file.relative_to(ROOT / "docs/results").parts[0]] += size
    assert max(results.values()) < 500_000


def test_git_keeps_no_report_that_dvc_caches() -> None:
    for file in tracked():
        if file.is_relative_to(ROOT / "docs/results") or "reports" in file.relative_to(ROOT).parts:
            assert file.suffix not in (".svg", ".tex", ".html"), file
    outs = [out for stage in stages().values() for out in stage["outs"] if isinstance(out, str) and "reports" in out]
    assert {Path(out).name for out in outs} == {"index.html", "tex", "vector"}
    for out in outs:
        ignored = subprocess.run(["git", "check-ignore", "-q", out], cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"{out} is in DVC's cache and not ignored by git"


def test_pictures_that_git_keeps_are_few_and_small() -> None:
    pictures = [file for file in tracked() if file.suffix == ".png"]
    for file in pictures:
        assert file.stat().st_size <= 150_000 and Image.open(file).mode == "P", file
    folders = Counter(file.parent for file in pictures)
    assert folders and max(folders.values()) <= 4, folders

"""The house rules that a reader relies on."""

import ast
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PURE = {
    "rewards/parsing.py",
    "rewards/numbers.py",
    "rewards/accuracy.py",
    "rewards/format.py",
    "rewards/types.py",
    "common/statistics.py",
}
PURE |= {"rewards/numbers.py", "data/prompts.py"}  # but for the templates, which are configured

EXTRAS = re.compile(r'-e "\.\[([\w,-]+)\]"')


@cache
def modules() -> dict[Path, ast.Module]:
    """The package's files and what they parse to."""
    return {path: ast.parse(path.read_text("utf-8")) for path in (ROOT / "echoink").rglob("*.py")}


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_nothing_imports_train_and_pure_modules_know_no_config_file_model_or_logger():
    for module, tree in modules().items():
        names = imports(tree)
        assert "echoink.train" not in names, module.name
        if str(module.relative_to(ROOT / "echoink")) in PURE:
            banned = ("torch", "transformers", "hydra", "omegaconf", "mlflow", "logging", "echoink.config", "pathlib")
            names -= {"echoink.config.schema", "echoink.config.schema.Prompt"}
            assert not [name for name in names if name.startswith(banned)], module.name


def test_general_code_names_no_model_class_and_no_model_type():
    allowed = {
        "models/qwen2_5_omni.py",
        "models/qwen2_5_omni_tokens.py",
        "models/tiny_architecture.py",
        "models/small_architecture.py",
    }
    for module in (ROOT / "echoink").rglob("*.py"):
        if str(module.relative_to(ROOT / "echoink")) not in allowed:
            named = re.findall(
                r"Qwen2_5Omni\w*|qwen2_5_omni_thinker|image_token_id|audio_tower|smart_resize|qwen2_vl",
                module.read_text(),
            )
            assert not named, f"{module}: {named}"


def test_every_family_has_all_that_a_family_gives():
    from echoink.models.family import Family
    from echoink.models.registry import FAMILIES

    names = {*Family.__annotations__, *(name for name, value in vars(Family).items() if callable(value))}
    for family in FAMILIES.values():
        assert not [name for name in names if not name.startswith("_") and not hasattr(family, name)]


def test_functions_and_classes_are_no_longer_than_one_can_read():
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= (300 if isinstance(node, ast.ClassDef) else 60), f"{module.name}: {node.name}: {lines}"


def test_calls_with_many_arguments_name_them():
    foreign = {"add_row", "ignore_patterns", "Progress"}  # they take any number of one kind
    tables = {"Gpu", "Benchmark"}  # rows of a table, whose columns stand above it
    for module, tree in modules().items():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and len(call.args) > 4:
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                assert name in foreign | tables, (
                    f"{module.relative_to(ROOT)}:{call.lineno}: {name} with nameless arguments"
                )


LATE = {
    "the command line is checked before heavy libraries are imported": (
        *("train.py", "predict.py", "export.py", "small.py", "tiny.py", "data/__main__.py", "benchmark/__main__.py"),
        *("pipeline/run.py", "planning/preflight.py", "config/compose.py", "common/console.py", "data/splits.py"),
    ),
    "what is missing or broken is a finding": ("doctor.py",),
    "not every run needs the library, which is an extra or takes a second": (
        *("data/readers.py", "data/open_media/catalogue.py", "rewards/accuracy.py"),
        *("models/loading.py", "models/pretrained_parts.py", "models/qwen2_5_omni_tokens.py"),
        *("distributed/sharding.py", "tracking/client.py", "tracking/sync.py", "tracking/traces.py"),
        "tracking/system_metrics.py",
    ),
}
"""Modules with imports inside functions, by the reason."""


def test_imports_inside_functions_have_a_reason():
    found = set()
    for module, tree in modules().items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        if any(isinstance(node, ast.Import | ast.ImportFrom) for each in functions for node in ast.walk(each)):
            found.add(str(module.relative_to(ROOT / "echoink")))
    assert found == {name for names in LATE.values() for name in names}


def test_the_readme_gives_both_commands():
    text = (ROOT / "README.md").read_text()
    start = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "
    assert f"{start}. && python -m echoink.train\n" in text
    assert f'{start}".[test]" && pytest\n' in text


def test_pages_are_finished_and_their_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "experiments").glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        assert "@@" not in text and "TODO" not in text, page.name
        for link in re.findall(r"\]\(((?!http|\.\./\.\./actions)[\w./-]+)\)", text):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:echoink|conf|experiments|tests)/[\w./-]+\.\w+)`", text)) | set(
        re.findall(r"\]\(((?!http|\.\.)[\w./-]+)\)", text)
    )
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_extras_that_one_is_told_to_install_exist_under_a_name_that_every_pip_finds():
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in given)  # pip 23.2 looks for the name as it was typed
    files = [ROOT / "README.md", ROOT / "pyproject.toml"]
    for folder, endings in {"echoink": "py", "conf": "yaml", "docs": "md", "experiments": "md py"}.items():
        files += [path for ending in endings.split() for path in (ROOT / folder).rglob(f"*.{ending}")]
    told = {name for path in files for names in EXTRAS.findall(path.read_text()) for name in names.split(",")}
    assert {"test", "open-media", "qlora"} <= told <= set(given)
    assert not [path for path in files[2:] if "echoink[" in path.read_text()], (
        "there is no echoink to install from an index"
    )


@pytest.mark.parametrize("script", sorted((ROOT / "experiments").rglob("*.py")), ids=lambda path: path.name)
def test_an_experiment_imports_what_is_there(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("echoink", "experiments", "tests")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_tests_mirror_the_folders():
    rooms = {path.name for path in (ROOT / "echoink").iterdir() if path.is_dir()}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert {str(folder) for folder in folders} - {"."} <= rooms


def test_every_fault_has_its_test_or_a_reason():
    rows = re.findall(r"^\| (\d+) \|(.*)\|(.*)\|(.*)\| (.*) \|$", (ROOT / "tests/FAULTS.md").read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    there = set(
        re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py")), re.M)
    )
    for number, _, outcome, tests, status in rows:
        assert status in ("held", "partly", "not there", "GPU"), number
        named = re.findall(r"`(test_\w+)`", tests)
        assert set(named) <= there, number
        assert named if status in ("held", "partly") else (outcome.strip() or status == "GPU"), number


def test_nothing_runs_that_the_user_did_not_write():
    """No pickle, no code of a hub's, nothing built from what a configuration names; a reward is the user's own file."""
    for path in (ROOT / "echoink").rglob("*.py"):
        code = path.read_text()
        assert not re.search(
            r"trust_remote_code|pickle\.load|joblib\.load|np\.load\(|\binstantiate\(|[^.\w]eval\(|[^.\w]exec\(", code
        ), path
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", code):
            assert "weights_only=True" in call, path


def folder_imports() -> dict[str, set[str]]:
    """For each folder of the package, or file at its top, the others that it imports, inside functions too."""
    found: dict[str, set[str]] = {}
    for path, tree in modules().items():
        checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        unrun = {id(node) for each in checked for node in ast.walk(each)}  # only a type checker imports them
        own = path.relative_to(ROOT / "echoink").with_suffix("").parts[0]
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("echoink.")
                and id(node) not in unrun
            ):
                found.setdefault(own, set()).add(node.module.split(".")[1])
    return {name: others - {name} for name, others in found.items()}


def test_files_are_utf_8_whatever_the_locale_is():
    """Under LANG=en_US a file would be written in latin-1, and "λ" would be an error."""
    left = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            given = [getattr(value, "value", "") for value in (*node.args, *(k.value for k in node.keywords))]
            said = "utf-8" in given or "utf-8-sig" in given
            own = ast.unparse(node.func.value) in ("self", "files", "self.files")  # `RunFolder.write_text` writes UTF-8
            if node.func.attr in ("read_text", "write_text") and not said and not own:
                left.append(f"{module.name}:{node.lineno}")
    assert not left


def test_imports_between_folders_run_one_way():
    left = folder_imports()
    assert len(left) > 18
    while lowest := [name for name in left if not left[name] & left.keys()]:
        for name in lowest:
            del left[name]
    assert not left, f"these import each other in a circle: {left}"


def test_every_folder_of_the_package_is_in_the_readme():
    folders = {path.name for path in (ROOT / "echoink").iterdir() if (path / "__init__.py").is_file()}
    listed = set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert folders == listed | {"curate", "benchmark", "report"} and len(folders) == 17

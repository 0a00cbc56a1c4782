"""What stands in several files agrees, and what the README promises works."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
README = (ROOT / "README.md").read_text()
ADDRESS = CONFIG["repository"]["url"]


def tracked():
    """The text files of the repository, those not yet added too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    for name in sorted({*listed.stdout.split("\0")} - {""}):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", pin.name).lower(): pin for pin in pins}


def test_version_agrees():
    assert PROJECT["version"] == str(CITATION["version"])
    assert PROJECT["version"] == version("vaetutor"), "install again: make clean, make test"


def test_constraints_are_exact():
    for name, pin in constraints().items():
        assert [spec.operator for spec in pin.specifier] == ["=="], name
        assert "+" not in str(pin.specifier), f"{name}: a local build, which no index has"


def test_constraints_meet_every_requirement():
    pins = constraints()
    wanted = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == PROJECT["name"]:  # one extra asks for another
            assert requirement.extras <= PROJECT["optional-dependencies"].keys()
            continue
        [pin] = pins[name].specifier
        assert requirement.specifier.contains(pin.version), requirement


def test_requirements_are_lower_bounds():
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [spec.operator for spec in requirement.specifier] == [">="], requirement


def test_tests_run_with_the_pinned_torch():
    [pin] = constraints()["torch"].specifier
    costs = json.loads((ROOT / "book" / "costs.json").read_text())
    assert {cost["torch"] for cost in costs.values()} == {pin.version}


def test_python_versions_agree():
    lowest = Version(PROJECT["requires-python"].removeprefix(">="))
    environment = (ROOT / "environment.yml").read_text()
    [conda] = re.findall(r"python=(\S+)", environment)
    assert Version(conda) >= lowest
    assert "constraints.txt" in environment and "==" not in environment
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        used = re.findall(r'"(3\.\d+)"', path.read_text())
        assert min(map(Version, used)) == lowest, path
    makefile = (ROOT / "Makefile").read_text()
    assert f"({lowest.major}, {lowest.minor})" in makefile
    assert f"Python {lowest} or newer" in makefile and f"Python {lowest} or newer" in README


def test_address_of_the_repository_agrees():
    """It stands in _config.yml; the others repeat it, and the notebooks follow from it."""
    repeats = {"_config.yml", "README.md", "CITATION.cff", "pyproject.toml"}
    owner, name = ADDRESS.split("/")[-2:]
    assert set(PROJECT["urls"].values()) == {ADDRESS}
    assert CITATION["repository-code"] == ADDRESS
    holds = {path for path, text in tracked() if f"{owner}/{name}" in text}
    assert repeats <= holds
    assert {path for path in holds - repeats if not path.startswith("book/notebooks/")} == set()
    # A badge or a link that kept an earlier address.
    for found in re.findall(r"github(?:\.com)?/([\w.-]+/" + name + r")\b", README):
        assert found == f"{owner}/{name}"


def test_no_path_of_a_machine():
    pattern = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp)/\w")
    for path, text in tracked():
        if found := pattern.search(text):
            pytest.fail(f"{path}: {text[max(0, found.start() - 40) : found.end() + 40]!r}")


def test_make_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) == {*phony.split()}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readme_code_runs(code, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_readme_has_code():
    assert "```python" in README


def test_readme_table_has_the_measured_time():
    costs = json.loads((ROOT / "book" / "costs.json").read_text())
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    [chapters] = [p["chapters"] for p in contents["parts"] if p["caption"] == "Chapters"]
    for chapter in [page for c in chapters for page in (c, *c.get("sections", []))]:
        if "kernelspec:" not in (ROOT / f"{chapter['file']}.md").read_text():
            continue  # a page without code
        [row] = [
            line for line in README.splitlines() if re.search(rf"^\|.*{chapter['file']}", line)
        ]
        cost = costs[Path(chapter["file"]).name]
        assert f"| {cost['seconds']} s |" in row, "run `make notebooks`"
        for memory in re.findall(r"(\d+) MB", row):
            assert int(memory) == cost["memory_mb"]


def test_import_is_light():
    """Nothing heavy beyond torch, and torch's own checks of distributions as they were."""
    heavy = ["matplotlib", "seaborn", "pandas", "sklearn", "mlxtend", "pooch", "zuko", "IPython"]
    code = f"""
import sys, torch, torch.distributions as td
before, loaded = td.Distribution._validate_args, set(sys.modules)
import vaetutor
assert td.Distribution._validate_args == before
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
assert not new & set({heavy}), new & set({heavy})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

"""Every code block of the documentation: it compiles, it is a config, the commands in it exist; or it says why not."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from pydantic import TypeAdapter, ValidationError

from castor.cli.main import app
from castor.cli.serve import serve_config
from castor.config.assess import Assess
from castor.config.extend import laid_over, merged
from castor.config.load import load_config, load_section
from castor.config.lookup import find
from castor.config.pipeline import Config
from castor.config.reference import ROOTS, keys
from castor.config.yaml_core import parse
from tests.unit.docs.blocks import BLOCKS, PAGES, ROOT

PROGRAMS = {"castor", "make", "python", "curl", "ray", "export"}
ELSEWHERE = {"curl", "ray"}  # need a server, or a cluster
LANGUAGES = {"", "sh", "yaml", "python", "json", "js", "text"}


def of(*languages):
    return pytest.mark.parametrize(
        "block", [block for block in BLOCKS if block.language in languages], ids=lambda block: block.place
    )


def test_every_block_is_found_and_of_a_known_language():
    fences = sum(line.startswith("```") for page in PAGES for line in page.read_text(encoding="utf-8").splitlines())
    assert fences == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} <= LANGUAGES


@of("python")
def test_python(block):
    tree = ast.parse(block.text)
    if all(isinstance(part, ast.FunctionDef) for part in tree.body):
        exec(compile(tree, block.place, "exec"), {})


@of("json")
def test_json(block):
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        for line in block.text.splitlines():
            json.loads(line)


SECTIONS = list(dict.fromkeys(key.where for root in ROOTS.values() for key in keys(root)))


def findings(section, values):
    """What is wrong with a fragment of `section`: nothing is, where only other keys are missing."""
    try:
        TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        return [each for each in error.errors() if each["type"] != "missing"]
    return []


@of("yaml")
def test_yaml_is_a_config_or_a_part_of_one(block):
    here = ROOT / "block.yaml"
    values = laid_over({}, here, lambda path: parse(block.text if path == here else path.read_text(encoding="utf-8")))
    base = laid_over({}, ROOT / "configs" / "rounds.yaml", lambda path: parse(path.read_text(encoding="utf-8")))
    known = [root for root in ROOTS.values() if values.keys() <= root.model_fields.keys()]
    tried = [(root, whole) for root in known for whole in (values, merged(base, values))]
    tried += [(each, values) for section in SECTIONS for each in (section, dict[str, section])]
    wrong = [findings(section, each) for section, each in tried]
    assert not all(wrong), (block.place, min(wrong, key=len))


@of("", "sh")
def test_commands(block):
    assert any(program in block.text for program in PROGRAMS), f"{block.place}: what is no command is ```text"
    for line in block.commands():
        program = line.split()[0]
        if block.language == "sh":
            assert program in PROGRAMS, line
        if program in ELSEWHERE:
            assert block.reason, f"{block.place}: say above the block why it is not run: <!-- not run: ... -->"
        for command in castor_commands(line):
            check_castor(command)
        if program == "make":
            target = re.escape(line.split()[1])
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), line
        if body := re.search(r"-d '(.*?)'", line):
            json.loads(body[1])
        if module := re.match(r"python -m (benchmarks\.\S+)", line):
            assert any(ROOT.joinpath(*module[1].split(".")).with_suffix(end).exists() for end in (".py", "")), line


def castor_commands(line):
    """The words behind `castor` in a line of a shell; options in brackets are options that may be left out."""
    if inside := re.search(r"\$\((castor .*?)\)", line):
        line = inside[1]
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", line), comments=True)
    if words[:1] == ["castor"]:
        return [words[1:]]
    return [words[i + 3 :] for i in range(len(words)) if words[i : i + 3] == ["python", "-m", "castor"]]


def check_castor(words):
    """The command line takes the words, and the configs that it would read take the options."""
    command, arguments = parsed(words)
    options = [word for word in words if re.match(r"[a-z_][\w.]*=", word)]
    root = {"run": "castor serve", "assess": "castor assess"}.get(command, "castor pipeline")
    for option in options:
        assert find(option.partition("=")[0], list(keys(ROOTS[root]))), f"{words}: no option {option}"
    config = arguments.get("config")
    if config is not None and (ROOT / config).is_file():
        load_config(ROOT / config, [str(ROOT / word) if word.endswith(".yaml") else word
                                    for word in arguments["overrides"] or []])  # fmt: skip
    elif command == "run":
        what = Path(arguments["what"])
        serve_config(ROOT / what if what.suffix else what, arguments["options"] or [])
    elif command == "assess" and not any(word.endswith(".yaml") for word in words):
        load_section(Assess, {}, options)
    elif command == "explain" and arguments["key"]:
        assert any(find(arguments["key"], list(keys(each))) for each in ROOTS.values()), words


def parsed(words):
    """The name of the command that `words` call, and its arguments as typer read them; it is not called."""
    called = []
    root = typer.main.get_command(app)
    _listen(root, called)
    root.main(list(words), standalone_mode=False)
    ((name, arguments),) = called
    return name, arguments


def _listen(command, called):
    for name, each in getattr(command, "commands", {}).items():
        _listen(each, called)
        if not hasattr(each, "commands"):
            each.callback = lambda name=name, **arguments: called.append((name, arguments))


def test_the_checks_find_what_is_wrong():
    for words in (["pipelin", "x"], ["pipeline", "configs/demo.yaml", "--dry"], ["runs", "prune"]):
        with pytest.raises(Exception, match=r"No such|Missing"):
            parsed(words)
    with pytest.raises(AssertionError, match="no option"):
        check_castor(["pipeline", "mine.yaml", "rlhf.ppo.stepz=3"])
    assert findings(Config, {"rlhf": {"a": {"stepz": 3}}})
    assert not findings(Config, {"rlhf": {"a": {"rollout": {"workers": 2}}}})

"""Reads the files under deploy/."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml

from keybearer_service.cli import app
from keybearer_service.config import Settings, load_to_serve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE_USER = 10001


@dataclass(frozen=True)
class Instruction:
    """One of a Dockerfile, with its lines joined."""

    name: str
    text: str

    @property
    def assignments(self) -> dict[str, str]:
        """What an ENV sets."""
        pairs = (word.partition("=") for word in shlex.split(self.text))
        return {name: value for name, _, value in pairs}


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage of the Dockerfile, its FROM first."""
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, rest))
    return found


BUILD, FINAL = stages()
[VARIABLES] = [one.assignments for one in FINAL if one.name == "ENV"]
"""What the image sets for every command."""


def texts_of(stage: list[Instruction], name: str) -> list[str]:
    """Return what follows a name in a stage."""
    return [one.text for one in stage if one.name == name]


def documents(name: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def objects(name: str) -> dict[str, Any]:
    """Return the objects of a manifest by their kind."""
    return {one["kind"]: one for one in documents(name)}


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line of `keybearer-server` without running it; return what it gives."""
    name, *options = arguments
    group: Any = typer.main.get_command(app)
    given = group.commands[name].make_context(name, list(options)).params
    return {key: value for key, value in given.items() if value is not None}


def settings_of(arguments: list[str]) -> Settings:
    """Return the settings of a command line of `keybearer-server serve`."""
    flags = parsed(arguments)
    flags.pop("config", None)
    return load_to_serve(None, flags)


def assert_serves(arguments: list[str]) -> None:
    """Check that `serve` takes a command line and its settings agree with each other."""
    settings_of(arguments)

"""`recsys lineage`: from a served version back to the input files, with the digest of each object on the way."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from flows.cli.home import HomeOption, open_home
from flows.cli.tables import plain_table
from recsys import wording
from recsys.errors import RegistryError
from tasks.adapters.registry import STUDENT
from tasks.workshop import Workshop

if TYPE_CHECKING:
    from tasks.lineage import Node, Trace

_SHOWN = 12  # characters of a digest in the tree; input files are shown with all 64


def command(
    version: Annotated[str, typer.Argument(help="A number, or champion, previous, challenger.")] = "champion",
    home: HomeOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Everything, for machines.")] = False,
) -> None:
    """What a version was made from, down to the bytes of the input."""
    workshop = Workshop.of(open_home(home))

    from tasks.lineage import trace

    found = trace(workshop, numbered(workshop, version))
    if json_:
        typer.echo(json.dumps(found.plain(), indent=1))
    else:
        Console(highlight=False).print(told(found))


def numbered(workshop: Workshop, text: str, model: str = STUDENT) -> int:
    """The version that a number or an alias names. RegistryError when there is none."""
    if text.isdecimal():
        return int(text)
    known: dict[str, int | None] = {**workshop.registry.aliases(model)}
    if model == STUDENT:
        chain = workshop.ledger.chain()
        known |= {"champion": chain.champion, "previous": chain.previous}
    number = known.get(text)
    if number is None:
        there = ", ".join(sorted(name for name, version in known.items() if version)) or "none"
        raise RegistryError(
            f"no version is called {wording.plain(text, 40)!r}", mend=f"Give a number; the names there are: {there}."
        )
    return number


def told(found: "Trace") -> RenderableType:
    """Verdict, ledger and runs, then the tree, then the input files with whole digests."""
    parts: list[RenderableType] = [Text(f"{STUDENT} version {found.version}", style="bold")]
    if found.judgement:
        sentence = wording.plain(found.judgement.sentence, 600)
        parts.append(Text(f"{found.judgement.decision}: {sentence}"))
        parts.append(Text(f"verdict {found.judgement.digest[:_SHOWN]}, gate {found.judgement.config}", style="dim"))
    for record in found.records:
        what = f"{record.op} {record.came_from or 'nothing'} → {record.to}"
        parts.append(Text(f"ledger record {record.number}, {record.at}: {what} by {wording.plain(record.actor, 40)}"))
    parts += [Text(f"registered by MLflow run {found.run_id}"), "", _tree(found), "", _inputs(found)]
    if found.judgement and found.judgement.reports:
        parts += ["", _reports(found)]
    return Group(*parts)


def _tree(found: "Trace") -> Tree:
    """Each object once, below the first that was made from it; what follows from a nearer one is left out."""
    from recsys.pedigree import essential

    parents = essential({node.digest: () if node.earlier else node.parents for node in found.nodes})
    tree = Tree(_label(found.nodes[0]))
    waiting, seen = [(found.nodes[0].digest, tree)], set()
    while waiting:
        digest, branch = waiting.pop()
        if digest in seen:
            branch.label = Text.assemble(_name(found.node(digest)), ("  above", "dim"))
            continue
        seen.add(digest)
        waiting += reversed([(parent, branch.add(_label(found.node(parent)))) for parent in parents[digest]])
    return tree


def _name(node: "Node") -> Text:
    from recsys.pedigree import NAMES

    name = NAMES.get(node.step, node.step)
    return Text.assemble((f"earlier {name}" if node.earlier else name, "bold"), " ", node.digest[:_SHOWN])


def _label(node: "Node") -> Text:
    """What it is, and below it when, by which run and with which configuration it was made."""
    facts = [wording.plain(node.name, 60)] if node.name else []
    facts += [f"version {node.version}"] if node.version else []
    facts += [f"{wording.count(node.count)} {node.of}"] if node.count is not None else []
    facts += [wording.size(node.bytes)] if node.bytes else []
    label = Text.assemble(_name(node), f"  {' · '.join(facts)}" if facts else "")
    if node.state != "whole":
        gone = "content removed by gc" if node.state == "emptied" else "no longer in the store"
        label.append(f"  {gone}", style="yellow")
    if node.made:
        when = f"{datetime.fromtimestamp(node.made, UTC):%Y-%m-%d %H:%M} UTC"
        run = wording.plain(node.run, 60) or "no run on record"
        label.append(f"\n{when} by {run}, configuration {node.config[:_SHOWN]}", style="dim")
    return label


def _inputs(found: "Trace") -> RenderableType:
    table = plain_table("Input files", ["File", "sha256"], ["Lines"])
    table.columns[1].no_wrap = True  # to be compared with what sha256sum says
    for node in found.inputs:
        table.add_row(Text(wording.plain(node.name, 60) or "name not known"), node.digest, wording.count(node.count))
    return table


def _reports(found: "Trace") -> RenderableType:
    assert found.judgement is not None  # the caller has looked
    table = plain_table("Reports that the verdict rests on", ["Model", "Report"])
    for role, digest in found.judgement.reports.items():
        table.add_row(role.replace("_", "-"), digest)
    return table

"""``gliclass labels``: what is in a label file, and what is doubtful about it."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gliclass_cli.cells import cells, fit
from gliclass_cli.cli.options import command, label_template, new_app, option
from gliclass_cli.errors import ExitCode, UsageProblem
from gliclass_cli.files import read_text_file
from gliclass_cli.labels import LabelProblem, LabelSet, parse_label_file
from gliclass_cli.model_folder import DEFAULT_MODEL
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime

if TYPE_CHECKING:
    from gliclass_cli.composer import Composer

app = new_app(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Look at files of labels."""


_WIDEST_LABEL = 40
_NOT_TOLD_APART = re.compile(r"[\s_\-.,;:/!?'\"()]+")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Everything that ``labels check`` takes."""

    file: Annotated[str, typer.Argument(metavar="FILE", help="A file of labels, as for --labels; - is standard input.")]
    model: Annotated[
        str,
        option("--model", help="The model that reads them; of the hub only one in the cache.", metavar="NAME|FOLDER"),
    ] = DEFAULT_MODEL
    template: Annotated[
        str | None,
        option(
            "--template",
            help="Wording of a label for the model, {label} in it.",
            metavar="TEXT",
            callback=label_template,
        ),
    ] = None
    max_length: Annotated[
        int | None, option("--max-length", help="Tokens of one input; default: the model's.", min=8, metavar="N")
    ] = None


def check(options: CheckOptions) -> None:
    """Check a file of labels.

    Shows each label as it is read (a hierarchy flattened to dotted names) with its description and its tokens. Labels
    that differ only in case, space or punctuation, and those that repeat a description, are doubtful: exit code 1.
    What classify would refuse, a label given twice or one that is too long for the model, is exit code 2.
    """
    found = _read(options.file)
    composer = load_composer(options.model, Reading(template=options.template, max_length=options.max_length))
    tokens = composer.label_tokens(found)
    for line in _lines(found, tokens, composer):
        typer.echo(line)
    doubts = list(_doubts(found))
    for doubt in doubts:
        typer.echo(f"doubtful: {doubt}")
    try:
        composer.labels(found)
    except LabelProblem as problem:
        raise UsageProblem(f"{options.file}: {problem}") from problem
    if doubts:
        raise typer.Exit(int(ExitCode.NEGATIVE))


def load_composer(model: str, reading: Reading) -> "Composer":
    """Load what composes a model's inputs, without its weights and without the network. Raises ModelUnusable."""
    from gliclass_cli.composer import Composer
    from gliclass_cli.loading import open_folder

    return Composer(open_folder(model, Runtime(offline=True)), reading)


def label_lines(labels: LabelSet, tokens: list[int]) -> Iterator[str]:
    """Yield a line for each label: its name, its tokens and its description."""
    from gliclass_cli.writers import printable

    longest = min(max(map(cells, labels.names)), _WIDEST_LABEL)
    digits = len(str(max(tokens)))
    for name, count, description in zip(labels.names, tokens, labels.descriptions, strict=True):
        shown = fit(printable(name), longest, mark="...")
        yield f"  {shown}  {count:>{digits}}  {printable(description or '')}".rstrip()


def _read(name: str) -> LabelSet:
    return parse_label_file(read_text_file(name, "label file", UsageProblem), name)


def _lines(found: LabelSet, tokens: list[int], composer: "Composer") -> Iterator[str]:
    described = sum(description is not None for description in found.descriptions)
    levels = max(map(len, found.paths))
    parts = [f"{len(found):,} label{'' if len(found) == 1 else 's'}"]
    parts += [f"{described:,} with a description"] if described else []
    parts += [f"a hierarchy of {levels} levels"] if levels > 1 else []
    yield ", ".join(parts)
    each = "each" if composer.labels_apart else "in all, beside a text"
    yield f"{min(tokens)} to {max(tokens)} tokens; the model has room for {composer.label_room} {each}"
    yield from label_lines(found, tokens)


def _doubts(found: LabelSet) -> Iterator[str]:
    """Yield what a person should look at."""
    seen: dict[str, str] = {}
    for name in found.names:
        # As people take them for the same: ligatures, accents composed or not, case, space and punctuation aside.
        key = _NOT_TOLD_APART.sub("", unicodedata.normalize("NFKC", name).casefold()) or name
        if key in seen:
            yield f"{seen[key]!r} and {name!r} differ only in case, space or punctuation"
        seen.setdefault(key, name)
    described: dict[str, str] = {}
    for name, description in zip(found.names, found.descriptions, strict=True):
        if description is not None and description in described:
            yield f"{described[description]!r} and {name!r} have the same description"
        elif description is not None:
            described[description] = name


command(app, CheckOptions, "check")(check)

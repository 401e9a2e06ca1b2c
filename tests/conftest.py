"""Settings of Hypothesis, and what several test files share."""

import os
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Several workers (pytest -n) share the cores: the libraries of each keep to its own, before they are imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from gliclass_cli import composer
from gliclass_cli.backends import onnx
from gliclass_cli.files import open_source
from gliclass_cli.model_folder import Graph
from gliclass_cli.readers import ReadOptions, read_rows
from gliclass_cli.records import Record

# The same examples in every run; a busy machine is no failure.
settings.register_profile("gliclass", derandomize=True, max_examples=100, deadline=None, database=None)
settings.load_profile("gliclass")


@pytest.fixture(scope="session", autouse=True)
def _no_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The defaults that whoever runs the tests has set for themselves are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _the_bundled_model_is_read_once() -> Iterator[None]:
    """Most commands that tests run load it, and nothing changes it: in a process its graphs and words are read once."""
    read_graph, read_tokenizer = onnx._open_session, composer.Tokenizer
    graph_once, tokenizer_once = cache(read_graph), cache(read_tokenizer)
    bundled = Path(onnx.__file__).parents[1] / "default_model"

    def open_session(graph: Graph, *, published: bool) -> Any:
        return (graph_once if graph.path.parent == bundled else read_graph)(graph, published=published)

    def open_tokenizer(path: Path, control: Collection[int] = ()) -> Any:
        return tokenizer_once(path, tuple(control)) if path.parent == bundled else read_tokenizer(path, control)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_open_session", open_session)
        patch.setattr(composer, "Tokenizer", open_tokenizer)
        yield


@pytest.fixture(scope="session")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Record]]:
    """Read bytes from a real file, as a user would: ``read(data, "csv", delimiter=";")`` gives the records."""
    path = tmp_path_factory.mktemp("read") / "input"

    def read_bytes(data: bytes, format: str | None = None, **options: Any) -> list[Record]:
        path.write_bytes(data)
        with open_source(str(path)) as source:
            return list(read_rows(source, ReadOptions(format, **options)).records)

    return read_bytes

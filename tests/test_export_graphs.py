"""The graphs of every architecture against ``gliclass_cli.model``, on bare token ids: hostile rows and padding too."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
import oracle
import pytest
import torch
from numpy.typing import NDArray

from gliclass_cli.checkpoint import CheckpointConfig, parse_checkpoint_config
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.builder import Precision, serialize
from gliclass_cli.export.graphs import ExportedGraphs, build_graphs
from gliclass_cli.model.architectures import build_model

VOCABULARY, LABEL, TEXT, EXAMPLE, LAST_WORD = 40, 37, 38, 39, 36
HIDDEN = oracle.HIDDEN
ENCODERS = ("bert", "deberta-v2", "modernbert")
T5S = ("t5", "mt5", "umt5")
POOLED = ("first", "last", "avg", "max", "sum", "rms", "abs_max", "abs_avg")
SCORED = ("simple", "weighted-dot", "mlp", "hopfield")
CROSS = {"scorer_type": "cross-attn", "pooling_strategy": "pass"}
Options = dict[str, Any]
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def cases() -> Iterator[tuple[str, Options]]:
    """Every value of every switch, and the pairs of them that meet in one place of a graph."""
    for backbone in (*ENCODERS, *T5S):
        uni = {"backbone": backbone}
        yield f"uni-{backbone}", uni
        yield f"uni-{backbone}-segments", uni | {"use_segment_embeddings": True}
        yield f"uni-{backbone}-squeezed", uni | {"squeeze_layers": True, "pooling_strategy": "avg"}
        for layer in (0, 1, 2, -2):
            yield f"uni-{backbone}-layer{layer}", uni | {"encoder_layer_id": layer, "squeeze_layers": layer == 1}
    for pooling in POOLED:
        for extract in (False, True):
            yield f"uni-{pooling}-{extract}", {"pooling_strategy": pooling, "extract_text_features": extract}
            yield f"uni-{pooling}-{extract}-lstm", {
                "pooling_strategy": pooling, "extract_text_features": extract, "use_lstm": True,
            }  # fmt: skip
    for scorer in SCORED:
        for normalize in (False, True):
            yield f"uni-{scorer}-{normalize}", {"scorer_type": scorer, "normalize_features": normalize}
    for extract in (False, True):
        yield f"uni-cross-{extract}", CROSS | {"extract_text_features": extract, "normalize_features": extract}
        yield f"uni-cross-{extract}-lstm", CROSS | {"extract_text_features": extract, "use_lstm": True}
    for architecture, backbone in (("uni-encoder", "bert"), ("encoder-decoder", "t5"), ("encoder-decoder-cls", "t5")):
        for pooling in ("first", "average"):
            for embedded in (True, False):
                yield f"{architecture}-{pooling}-{embedded}", {
                    "architecture_type": architecture, "backbone": backbone,
                    "class_token_pooling": pooling, "embed_class_token": embedded,
                }  # fmt: skip
    for activation in ("relu", "silu", "tanh", "gelu_new", "gelu_fast", "mish"):
        yield f"uni-{activation}", {"projector_hidden_act": activation}
    yield "uni-narrow", {"hidden_size": 20}
    for architecture in ("bi-encoder", "bi-encoder-fused"):
        for number, backbone in enumerate(ENCODERS):
            bi = {"architecture_type": architecture, "backbone": backbone, "label_backbone": ENCODERS[number - 1]}
            yield f"{architecture}-{backbone}", bi | {"normalize_features": True}
        for scorer in SCORED[1:]:
            yield f"{architecture}-{scorer}", {"architecture_type": architecture, "scorer_type": scorer}
        for pooling in POOLED:
            yield f"{architecture}-{pooling}", {"architecture_type": architecture, "pooling_strategy": pooling}
    for architecture in ("encoder-decoder", "encoder-decoder-cls"):
        for backbone in T5S:
            decoder = {"architecture_type": architecture, "backbone": backbone, "pooling_strategy": "avg"}
            yield f"{architecture}-{backbone}", decoder | {"normalize_features": True}
            yield f"{architecture}-{backbone}-lstm", decoder | {"use_lstm": True, "scorer_type": "hopfield"}


CASES = dict(cases())


class Subject:
    """A tiny model in PyTorch, and what its graphs are built from."""

    def __init__(self, options: Options, seed: int = 0) -> None:
        self.config = configuration(**options)
        self.model: Any = seeded(build_model(self.config), seed)
        self.weights = {name: value.numpy() for name, value in self.model.state_dict().items()}
        parts = dict(self.model.named_children())
        self.encoder = (parts.get("encoder_model") or parts["encoder_decoder_model"]).config.to_dict()
        self.label_encoder = parts["label_encoder"].config.to_dict() if "label_encoder" in parts else None

    def graphs(self, precision: Precision = "fp32", encoder: Mapping[str, Any] | None = None) -> ExportedGraphs:
        encoder = self.encoder if encoder is None else encoder
        return build_graphs(self.config, self.weights, encoder, self.label_encoder, precision=precision)

    def sessions(self, precision: Precision = "fp32") -> dict[str, Any]:
        return {role: session(serialize(graph)) for role, graph in self.graphs(precision).graphs.items()}


def configuration(**options: Any) -> CheckpointConfig:
    backbone, label_backbone = options.pop("backbone", "bert"), options.pop("label_backbone", "bert")
    raw: Options = {
        "encoder_config": oracle.backbone_config(backbone, VOCABULARY) | options.pop("encoder", {}),
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "class_token_index": LABEL,
        "text_token_index": TEXT,
        "example_token_index": EXAMPLE,
        "scorer_num_heads": 4,
        "scorer_mlp_hidden_size": 48,
    }
    if options.get("architecture_type", "uni-encoder").startswith("bi-encoder"):
        raw["label_model_config"] = oracle.backbone_config(label_backbone, VOCABULARY, oracle.LABEL_HIDDEN)
    return parse_checkpoint_config(raw | options, "config.json")


def seeded(model: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(oracle._draw(generator, f"model.{name}", tuple(parameter.shape))))
            if model.config.pooling == "sum" and name == "text_projector.linear_1.weight":
                parameter.div_(16)  # a sum grows with the text
    return model.eval()


def session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def prompts(*, bare: bool = False, seed: int = 1) -> list[list[int]]:
    """Rows of different lengths and numbers of labels: text first, last or missing, empty labels, examples."""
    generator = np.random.default_rng(seed)

    def words(size: int) -> list[int]:
        return [int(word) for word in generator.integers(3, LAST_WORD + 1, size)]

    def labels(*sizes: int) -> list[int]:
        return [token for size in sizes for token in (LABEL, *([] if bare else words(size)))]

    return [
        [1, *labels(1, 3, 2), TEXT, *words(9), 2],
        [1, *labels(2), TEXT, *words(45), 2],
        [1, *labels(1, 1, 0, 2, 4, 1), TEXT, *words(1), 2],
        [1, *words(6), *labels(2, 1), TEXT, 2],
        [1, *labels(1, 2), *words(5), 2],  # no text token
        [1, *labels(3, 1), TEXT, *words(8), EXAMPLE, *words(3), EXAMPLE, *words(2), TEXT, 2],
        [1, *words(4), LABEL],  # nothing after the label
    ]


def padded(rows: list[list[int]], *fillers: int) -> tuple[Ids, Ids]:
    """Ids and mask; padding is anything at all, tokens that only the mask tells from real ones included."""
    size = max(map(len, rows))
    ids = np.random.default_rng(len(rows)).choice(fillers, (len(rows), size)).astype(np.int64)
    mask = (np.arange(size) < np.array([len(row) for row in rows])[:, None]).astype(np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, mask


def inputs(subject: Subject, rows: list[list[int]], *fillers: int) -> dict[str, Any]:
    """What graphs and model read for some prompts; an encoder-decoder reads half of each as its text, too."""
    names = ("input_ids", "attention_mask")
    ids, mask = padded(rows, *fillers)
    if subject.config.architecture.startswith("encoder-decoder"):
        texts = [[min(token, LAST_WORD) for token in row[: 2 + len(row) // 2]] for row in rows]
        text = padded(texts, *fillers)
        return dict(zip((*names, *(f"class_{name}" for name in names)), (*text, ids, mask), strict=True))
    return dict(zip(names, (ids, mask), strict=True))


def label_rows(count: int) -> tuple[Ids, Ids]:
    generator = np.random.default_rng(9)
    rows = [generator.integers(3, LAST_WORD + 1, size).tolist() for size in (1, 4, 2, 9, 3, 3)]
    return padded(rows[:count], LABEL, 5)


def by_graphs(subject: Subject, sessions: dict[str, Any], rows: list[list[int]], *fillers: int) -> list[Floats]:
    """The logits of each row's labels; those of a bi-encoder are encoded together once."""
    given, config = inputs(subject, rows, *fillers), subject.config
    counts = [row.count(LABEL) for row in rows]
    if config.architecture.startswith("bi-encoder"):
        ids, mask = label_rows(max(counts))
        vectors = sessions["label"].run(None, {"input_ids": ids, "attention_mask": mask})[0]
        labels = np.repeat(vectors[None], len(rows), axis=0)  # (B, C, D)
        if config.architecture == "bi-encoder-fused":
            given["labels"] = labels
        else:
            text = sessions["text"].run(None, given)[0]
            taken = (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int64)
            if "scorer" not in sessions:
                logits = np.einsum("bd,bcd->bc", text, labels) * subject.weights["logit_scale"]
            else:
                logits = sessions["scorer"].run(None, {"text": text, "labels": labels, "label_mask": taken})[0]
            return [row[:count] for row, count in zip(logits, counts, strict=True)]
    logits = sessions["text"].run(None, given)[0]
    assert logits.shape == (len(rows), max(counts))
    return [row[:count] for row, count in zip(logits, counts, strict=True)]


@torch.no_grad()
def by_model(subject: Subject, row: list[int]) -> Floats:
    """The logits of one row by itself, in PyTorch."""
    given = {name: torch.from_numpy(value) for name, value in inputs(subject, [row], 5).items()}
    model, count = subject.model, row.count(LABEL)
    if not subject.config.architecture.startswith("bi-encoder"):
        logits: Floats = model(**given)[0].numpy()
        return logits
    labels = model.encode_labels(*(torch.from_numpy(part) for part in label_rows(count)))[None]
    taken = torch.ones(1, count, dtype=torch.long)
    if subject.config.architecture == "bi-encoder-fused":
        logits = model(**given, labels=labels, label_mask=taken)[0].numpy()
    else:
        logits = model.score(model.encode_text(**given), labels, taken)[0].numpy()
    return logits


def furthest(found: list[Floats], expected: list[Floats]) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    size = max(1.0, *(float(np.abs(row).max()) for row in expected))
    assert [row.shape for row in found] == [row.shape for row in expected]
    assert all(np.isfinite(row).all() for row in found)
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True)) / size


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than they save here
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_graphs_equal_the_model_and_rows_do_not_see_each_other(name: str) -> None:
    subject = Subject(CASES[name], seed=len(name))
    rows = prompts(bare=subject.config.architecture == "bi-encoder-fused")
    expected = [by_model(subject, row) for row in rows]
    precisions: tuple[tuple[Precision, float], ...] = (("fp32", 1e-5), ("int8", 0.3))
    for precision, tolerance in precisions:
        sessions = subject.sessions(precision)
        together = by_graphs(subject, sessions, rows, LABEL, TEXT, EXAMPLE, 5)
        alone = [by_graphs(subject, sessions, [row], 5)[0] for row in rows]
        assert furthest(alone, expected) < tolerance
        assert furthest(together, alone) < 1e-5


@pytest.mark.parametrize("backbone", [*ENCODERS, *T5S])
def test_int8_is_near_fp32(backbone: str) -> None:
    subject = Subject({"backbone": backbone, "scorer_type": "mlp", "pooling_strategy": "avg"}, seed=3)
    rows = [row for seed in range(40) for row in prompts(seed=seed)]
    exact, near = (
        np.concatenate(by_graphs(subject, subject.sessions(precision), rows, 5))
        for precision in ("fp32", "int8")
    )  # fmt: skip
    # Measured with three seeds each: 0.994 to 0.999, and 0.03 to 0.13.
    assert np.corrcoef(exact, near)[0, 1] > 0.99
    assert np.abs(exact - near).mean() < 0.2 * exact.std()


# --- the interface ----------------------------------------------------------------------------------------------------

IDS = ["input_ids", "attention_mask"]
INTERFACES: dict[str, tuple[Options, dict[str, list[str]]]] = {
    "uni-encoder": ({}, {"text": [*IDS, "logits"]}),
    "bi-encoder": ({}, {"text": [*IDS, "embedding"], "label": [*IDS, "embedding"]}),
    "bi-encoder-mlp": (
        {"architecture_type": "bi-encoder", "scorer_type": "mlp"},
        {
            "text": [*IDS, "embedding"],
            "label": [*IDS, "embedding"],
            "scorer": ["text", "labels", "label_mask", "logits"],
        },
    ),
    "bi-encoder-fused": ({}, {"text": [*IDS, "labels", "logits"], "label": [*IDS, "embedding"]}),
    "encoder-decoder": ({"backbone": "t5"}, {"text": [*IDS, *(f"class_{name}" for name in IDS), "logits"]}),
    "encoder-decoder-cls": ({"backbone": "t5"}, {"text": [*IDS, *(f"class_{name}" for name in IDS), "logits"]}),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_graphs_have_the_inputs_and_outputs_of_their_architecture(name: str) -> None:
    options, expected = INTERFACES[name]
    graphs = Subject({"architecture_type": name} | options).graphs().graphs
    found = {role: [item.name for item in (*model.graph.input, *model.graph.output)] for role, model in graphs.items()}
    assert found == expected
    for model in graphs.values():
        for item in (*model.graph.input, *model.graph.output):
            dimensions = item.type.tensor_type.shape.dim
            assert all(dimension.dim_param for dimension in dimensions), f"{item.name} has a fixed size"


def test_builds_are_deterministic() -> None:
    subject = Subject({"backbone": "deberta-v2", "use_lstm": True})
    one, other = (serialize(subject.graphs("int8").graphs["text"]) for _ in range(2))
    assert one == other


def test_int8_graphs_take_no_scale_over_the_batch_and_leave_heads_exact() -> None:
    subject = Subject({"scorer_type": "mlp", "use_lstm": True})
    model = subject.graphs("int8").graphs["text"]
    kinds = {node.op_type for node in model.graph.node}
    assert "DynamicQuantizeLinear" not in kinds and "Gemm" not in kinds
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 2 * 6  # of two layers: q, k, v, output, and both of the feed-forward layer
    assert len([node for node in model.graph.node if node.op_type == "QuantizeLinear"]) == 2 * 4  # one for q, k and v


@pytest.mark.parametrize("older", [{}, {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}])
def test_modernbert_is_read_by_its_older_names_too(older: Options) -> None:
    subject = Subject({"backbone": "modernbert"})
    names = {"layer_types", "rope_parameters"}
    assert names <= set(subject.encoder)
    rest = {name: value for name, value in subject.encoder.items() if name not in names}
    older = rest | {"global_attn_every_n_layers": 2} | older
    one, other = (serialize(subject.graphs(encoder=values).graphs["text"]) for values in (subject.encoder, older))
    assert one == other


def test_graphs_are_built_without_pytorch() -> None:
    code = "import sys, gliclass_cli.export.graphs; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "encoder", "message"),
    [
        ({}, {"model_type": "roberta"}, "over roberta cannot be exported, only over bert"),
        ({}, {"model_type": "qwen3"}, "over qwen3 cannot be exported"),
        ({}, {"is_decoder": True}, "BERT as a decoder cannot be exported"),
        ({}, {"hidden_act": "relu6"}, "activation 'relu6' cannot be exported"),
        ({"projector_hidden_act": "leaky_relu"}, {}, "activation 'leaky_relu' cannot be exported"),
        ({"backbone": "deberta-v2"}, {"conv_kernel_size": 3}, "convolution or narrow embeddings cannot"),
        ({"backbone": "t5"}, {"feed_forward_proj": "relu6"}, "activation 'relu6' cannot be exported"),
        ({"backbone": "t5", "architecture_type": "encoder-decoder"}, {"model_type": "bert"}, "over bert cannot be"),
    ],
)
def test_what_cannot_be_exported_says_what_runs_it(options: Options, encoder: Options, message: str) -> None:
    subject = Subject(options)
    with pytest.raises(ModelUnusable, match=f"{message}.*") as raised:
        subject.graphs(encoder={**subject.encoder, **encoder})
    assert "--backend torch runs" in str(raised.value)

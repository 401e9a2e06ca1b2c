"""The oracle: tiny seeded checkpoints saved by the reference package ``gliclass``, and the logits it gives them.

    python tests/oracle.py --write     write golden.json.gz
    python tests/oracle.py --check     compare the installed reference with golden.json.gz

Weights are drawn by numpy from the name of each case, so they depend on no version of torch. The reference runs one
text at a time (and a bi-encoder's labels one at a time): where its own padding would move its scores, there is none.
"""

import argparse
import gzip
import json
import math
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden.json.gz"
LABEL_TOKENIZER = "label_tokenizer"
TOKENS = ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>")
HIDDEN, LABEL_HIDDEN, DECODER_HIDDEN = 32, 24, 64

Labels = Any  # a list of labels, or a hierarchy of them


@dataclass(frozen=True)
class Request:
    """What a user asks for: a text, labels or a hierarchy of them, a task prompt, and examples."""

    text: str
    labels: Labels
    prompt: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()


_EXAMPLES = (
    {"text": "great phone and fast shipping", "labels": ["positive", "shipping"]},
    {"text": "the game was lost", "labels": ["sports"]},
)
_TEXT = "the quick brown fox jumps over the lazy dog, and the team won its game"
REQUESTS: Mapping[str, Request] = {
    "plain": Request(_TEXT, ["sports", "politics", "science news"]),
    "prompt": Request(_TEXT, ["positive", "negative"], prompt="Classify this review by sentiment: "),
    "examples": Request("fast delivery", ["positive", "negative", "shipping"], examples=_EXAMPLES),
    "both": Request("the team won", ["sports", "positive"], prompt="Which topic? ", examples=_EXAMPLES),
    "hierarchy": Request("slow shipping", {"sentiment": ["positive", "negative"], "topic": {"order": ["shipping"]}}),
    "one": Request(_TEXT, ["a longer label of several words"]),
    "seven": Request("won", ["sports", "politics", "science", "music", "food", "travel", "weather"]),
    "unicode": Request("👍🏽 טוב מאוד — naïve café 東京", ["positive", "שלילי", "😀"]),
}
BASIC = ("plain", "hierarchy")
NO_EXAMPLES = ("plain", "prompt", "hierarchy", "one", "seven", "unicode")


@dataclass(frozen=True)
class Case:
    """One checkpoint of the matrix; what is not named is as in the reference's configuration."""

    name: str
    architecture: str = "uni-encoder"
    backbone: str = "bert"
    label_backbone: str = "bert"
    pooling: str = "first"
    class_pooling: str = "first"
    scorer: str = "simple"
    prompt_first: bool = True
    normalize: bool = False
    lstm: bool = False
    extract: bool = False
    embed_class_token: bool = True
    segments: bool = False
    layer_id: int = -1
    squeeze: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    requests: tuple[str, ...] = BASIC


# --- tokenizers -------------------------------------------------------------------------------------------------------

_WORDS = (  # noqa: SIM905
    "the quick brown fox jumps over lazy dog and team won its game great phone fast shipping was lost classify this "
    "review by sentiment which topic delivery slow positive negative sports politics science news music food travel "
    "weather a longer label of several words order it is in on to with good bad not very er ing ed ion es ly al"
).split()
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"-_()/é"


def build_tokenizer(backbone: str) -> Any:
    """Build a fast tokenizer of a backbone's kind, with the three tokens that the reference's training adds."""
    from transformers import PreTrainedTokenizerFast

    build, special = {
        "bert": (_wordpiece, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}),
        "deberta-v2": (
            _deberta,
            {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        ),
        "t5": (_t5, {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}),
        "modernbert": (_modernbert, {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}),
        "qwen3": (_qwen, {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    }[{"mt5": "t5", "umt5": "t5"}.get(backbone, backbone)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build(), model_input_names=["input_ids", "attention_mask"], **special
    )
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    return tokenizer


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *_CHARACTERS.lower(), "—", "東", "京"]
    pieces += [f"##{piece}" for piece in pieces[5:]]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _surrounded(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")


def _unigram(special: tuple[str, ...], unknown: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [(token, 0.0) for token in special]
    pieces += [(f"▁{word}", -4 - i / 64) for i, word in enumerate(_WORDS)]
    pieces += [(word, -6 - i / 64) for i, word in enumerate(_WORDS) if len(word) > 1]
    pieces += [(character, -9.0) for character in dict.fromkeys("▁" + _CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, special.index(unknown), False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    return tokenizer


def _deberta() -> Any:
    tokenizer = _unigram(("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[UNK]")
    return _surrounded(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")


def _t5() -> Any:
    return _surrounded(_unigram(("<pad>", "</s>", "<unk>"), "<unk>"), "$A </s>", "</s>")


def _byte_level(special: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        pieces = ["Ġ", *word]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    for token in special:
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _modernbert() -> Any:
    tokenizer = _byte_level(("[CLS]", "[SEP]", "[PAD]"))
    return _surrounded(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")


def _qwen() -> Any:
    return _byte_level(("<|endoftext|>",))


def _surrounded(tokenizer: Any, template: str, *special: str) -> Any:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
    )
    return tokenizer


# --- checkpoints ------------------------------------------------------------------------------------------------------


def backbone_config(backbone: str, vocab_size: int, hidden: int = HIDDEN) -> dict[str, Any]:
    """Return the configuration of a tiny backbone, as transformers writes it."""
    plain = {
        "model_type": backbone,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
    }
    if backbone == "bert":
        return plain | {"max_position_embeddings": 256}
    if backbone == "deberta-v2":  # as DeBERTa-v3 is
        return plain | {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "max_relative_positions": -1,
            "max_position_embeddings": 256,
            "layer_norm_eps": 1e-7,
        }
    if backbone == "modernbert":
        special = {"pad_token_id": 2, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 1, "eos_token_id": 1}
        return plain | special | {"global_attn_every_n_layers": 2, "local_attention": 8}
    if backbone == "qwen3":
        return plain | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    if backbone in ("t5", "mt5", "umt5"):
        return {
            "model_type": backbone,
            "vocab_size": vocab_size,
            "d_model": hidden,
            "d_kv": hidden // 4,
            "d_ff": 2 * hidden,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
            "feed_forward_proj": "relu" if backbone == "t5" else "gated-gelu",
            "decoder_start_token_id": 0,
            "is_encoder_decoder": True,
        }
    return plain


def write_checkpoint(case: Case, folder: Path) -> None:
    """Build a case's model with the reference, seed its weights, and save it with its tokenizers."""
    with quiet():
        model = build_oracle(case)
        model.save_pretrained(folder)
        build_tokenizer(case.backbone).save_pretrained(folder)
        if case.architecture.startswith("bi-encoder"):
            build_tokenizer(case.label_backbone).save_pretrained(folder / LABEL_TOKENIZER)
            shutil.copy(folder / LABEL_TOKENIZER / "tokenizer.json", folder / f"{LABEL_TOKENIZER}.json")


def shared_encoder_config(pooling: str, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of a bi-encoder with one encoder for texts and labels, which the reference lacks."""
    return {
        "model_type": "GLiClass", "architecture_type": "bi-encoder", "shared_encoder": True,
        "encoder_config": backbone_config("bert", vocabulary), "pooling_strategy": pooling, "scorer_type": "simple",
        "normalize_features": True, "hidden_size": HIDDEN, "vocab_size": vocabulary, "logit_scale_init_value": 12.0,
        "inference": {"label_template": "It is {label}.", "max_length": 64, "calibration":
                      {"single": {"temperature": 0.5}, "multi": {"temperature": 1.5, "bias": -1.0}}},
    }  # fmt: skip


def write_shared_encoder(folder: Path, pooling: str = "first") -> None:
    """Write a seeded checkpoint of that kind."""
    import torch

    from gliclass_cli.checkpoint import parse_checkpoint_config
    from gliclass_cli.model import build_model, save_model

    tokenizer = build_tokenizer("bert")
    torch.manual_seed(0)
    model = build_model(parse_checkpoint_config(shared_encoder_config(pooling, len(tokenizer)), "config.json"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif name.endswith("bias") and "logit" not in name:
                parameter.normal_(std=0.1)
        model.get_parameter("logit_bias").fill_(-3.0)
    save_model(model, folder)
    tokenizer.save_pretrained(folder)


def build_oracle(case: Case) -> Any:
    """Build the reference's model of a case, with seeded weights."""
    from gliclass import GLiClassModel, GLiClassModelConfig

    tokenizer = build_tokenizer(case.backbone)
    index = {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS}
    hidden = DECODER_HIDDEN if case.architecture == "decoder-kv" else HIDDEN
    values: dict[str, Any] = {
        "encoder_config": backbone_config(case.backbone, len(tokenizer), hidden),
        "encoder_model": f"tiny-{case.backbone}",
        "encoder_model_name": f"tiny-{case.backbone}",
        "vocab_size": len(tokenizer),
        "class_token_index": index["<<LABEL>>"],
        "text_token_index": index["<<SEP>>"],
        "example_token_index": index["<<EXAMPLE>>"],
        "architecture_type": case.architecture,
        "pooling_strategy": case.pooling,
        "class_token_pooling": case.class_pooling,
        "scorer_type": case.scorer,
        "prompt_first": case.prompt_first,
        "normalize_features": case.normalize,
        "use_lstm": case.lstm,
        "extract_text_features": case.extract,
        "embed_class_token": case.embed_class_token,
        "use_segment_embeddings": case.segments,
        "encoder_layer_id": case.layer_id,
        "squeeze_layers": case.squeeze,
        "problem_type": "multi_label_classification",
    }
    if case.architecture.startswith("bi-encoder"):
        labels = build_tokenizer(case.label_backbone)
        values["label_model_config"] = backbone_config(case.label_backbone, len(labels), LABEL_HIDDEN)
        values["label_model_name"] = f"tiny-{case.label_backbone}-labels"
    if case.architecture == "decoder-kv":
        values |= {"sep_token_index": index["<<SEP>>"], "scorer_mlp_hidden_size": 48}
    if case.scorer == "cross-attn":
        values |= {"scorer_num_heads": 4, "scorer_mlp_hidden_size": 48}
    with quiet():
        model = GLiClassModel(GLiClassModelConfig(**(values | dict(case.options))))
        seed_weights(model, case.name)
    return model.eval()


def seed_weights(model: Any, name: str) -> None:
    """Overwrite every parameter with values drawn from ``name``, of a size that keeps activations near 1."""
    import torch

    generator = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(_draw(generator, key, tuple(parameter.shape))))
            if model.config.pooling_strategy == "sum" and key.endswith("text_projector.linear_1.weight"):
                parameter.div_(16)  # a sum grows with the text


def _draw(generator: np.random.Generator, key: str, shape: tuple[int, ...]) -> Any:
    values = generator.normal(0, 1, shape)
    module = key.rsplit(".", 2)[-2]
    if key.endswith("logit_scale"):
        values = np.array(1.5)
    elif len(shape) == 1:
        values = values * 0.1 + (1 if key.endswith("weight") else 0)
    elif "embed" in module or module == "shared":
        values = values * 0.6
    elif module in ("q", "relative_attention_bias"):  # T5 does not scale its queries
        values = values / (shape[-1] if module == "q" else 2)
    else:
        values = values * 1.3 / math.sqrt(shape[-1])
    if key.endswith(("_projector.linear_2.weight", "q_proj.weight")) and "encoder_model" not in key:
        values = values * 0.4  # where errors of rounding would be multiplied
    return values.astype(np.float32)


# --- logits -----------------------------------------------------------------------------------------------------------


class Oracle:
    """The reference's model and pipeline for one folder."""

    def __init__(self, folder: Path, *, tokenizers: Path | None = None, mend: bool = True) -> None:
        """Load a checkpoint as a user of the reference would; its tokenizers may be in another folder."""
        from gliclass import GLiClassModel, ZeroShotClassificationPipeline
        from transformers import AutoTokenizer

        tokenizers = tokenizers or folder
        with quiet():
            self.model = GLiClassModel.from_pretrained(folder)
            if mend:
                mend_ties(self.model)
            if self.model.config.label_model_name is not None:
                self.model.config.label_model_name = str(tokenizers / LABEL_TOKENIZER)
            tokenizer = AutoTokenizer.from_pretrained(tokenizers)
            pipeline = ZeroShotClassificationPipeline(self.model, tokenizer, device="cpu", progress_bar=False)
        self.pipe = pipeline.pipe
        if self.model.config.architecture_type.startswith("bi-encoder"):
            self.model.model.encode_classes = _one_by_one(self.model.model.encode_classes)

    def inputs(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        """Return what the pipeline gives to the model for a request, and the flat labels."""
        labels = self.pipe._process_labels(request.labels)
        examples = [dict(example) for example in request.examples] or None
        inputs = self.pipe.prepare_inputs(
            [request.text], labels, same_labels=True, examples=examples, prompt=request.prompt or None
        )
        return dict(inputs), labels

    def logits(self, request: Request) -> list[float]:
        """Return the logits of a request's labels."""
        import torch

        inputs, labels = self.inputs(request)
        config = self.model.config
        if config.encoder_layer_id != -1:  # the pipeline forgets to ask for what it then reads
            inputs |= {"output_hidden_states": True, "return_dict": True}
        if config.architecture_type.startswith("encoder-decoder"):
            # Its slots are a fixed number, and hopfield's softmax runs over the empty ones too.
            config.max_num_classes = len(labels)
        with torch.no_grad(), quiet():
            logits = self.model(**inputs, max_num_classes=len(labels)).logits[0]
        values: list[float] = logits[: len(labels)].float().tolist()
        return values


def oracle_logits(folder: Path, request: Request) -> list[float]:
    """Return the reference's logits for a request, run by itself."""
    return Oracle(folder).logits(request)


def mend_ties(model: Any) -> None:
    """Tie a decoder's embeddings to the encoder's again, as they were saved.

    Under transformers 5 the reference forgets to, and an encoder-decoder starts with random ones at every load.
    """
    backbone = getattr(model.model, "encoder_decoder_model", None)
    if backbone is not None:
        backbone.decoder.embed_tokens.weight = backbone.shared.weight


def _one_by_one(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Have a bi-encoder's labels encoded each by itself, so that the reference's unmasked pooling sees no padding."""
    import torch

    def encode_classes(ids: Any, mask: Any, labels_mask: Any = None) -> Any:
        lengths = mask[0].sum(dim=-1).tolist()
        found = [
            encode(
                ids[:, i : i + 1, :size].contiguous(), mask[:, i : i + 1, :size].contiguous(), labels_mask[:, i : i + 1]
            )
            for i, size in enumerate(lengths)
        ]
        return torch.cat(found, dim=1)

    return encode_classes


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and loggers of the reference and of transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# --- the matrix -------------------------------------------------------------------------------------------------------

POOLINGS = ("first", "last", "avg", "max", "sum", "rms", "abs_max", "abs_avg")
SCORERS = ("simple", "weighted-dot", "mlp", "hopfield")
BACKBONES = ("deberta-v2", "modernbert", "bert", "t5")


def _uni_encoders() -> Iterator[Case]:
    everything = tuple(REQUESTS)
    for i, pooling in enumerate(POOLINGS):
        for j, scorer in enumerate(SCORERS):
            backbone = BACKBONES[(i + j) % 4]
            for prompt_first in (True, False):
                order = "labels-first" if prompt_first else "text-first"
                yield Case(
                    f"uni/{backbone}/{pooling}/{scorer}/{order}",
                    backbone=backbone,
                    pooling=pooling,
                    scorer=scorer,
                    prompt_first=prompt_first,
                )
                if pooling in ("first", "sum", "abs_max"):  # the others count padding in the reference
                    yield Case(
                        f"uni/{backbone}/{pooling}/average/{scorer}/{order}",
                        backbone=backbone,
                        pooling=pooling,
                        class_pooling="average",
                        extract=True,
                        scorer=scorer,
                        prompt_first=prompt_first,
                    )
    for backbone in (*BACKBONES, "mt5", "umt5"):
        yield Case(f"uni/{backbone}/all", backbone=backbone, requests=everything)
        yield Case(
            f"uni/{backbone}/mlp/text-first", backbone=backbone, scorer="mlp", prompt_first=False, requests=everything
        )


def _uni_encoder_switches() -> Iterator[Case]:
    everything = tuple(REQUESTS)
    for i, backbone in enumerate(BACKBONES):
        other = BACKBONES[(i + 1) % 4]
        yield Case(
            f"uni/{backbone}/cross-attn", backbone=backbone, pooling="pass", scorer="cross-attn", requests=everything
        )
        yield Case(f"uni/{backbone}/lstm", backbone=backbone, pooling="avg", lstm=True)
        yield Case(f"uni/{backbone}/normalize", backbone=backbone, normalize=True)
        yield Case(f"uni/{backbone}/no-class-token", backbone=backbone, embed_class_token=False)
        yield Case(f"uni/{backbone}/segments", backbone=backbone, segments=True, requests=NO_EXAMPLES)
        yield Case(f"uni/{backbone}/layer-1", backbone=backbone, layer_id=1)
        yield Case(f"uni/{other}/layer--2", backbone=other, layer_id=-2, pooling="avg")
    yield Case("uni/bert/cross-attn/extract", pooling="pass", scorer="cross-attn", extract=True, requests=everything)
    yield Case("uni/bert/cross-attn/normalize", pooling="pass", scorer="cross-attn", normalize=True)
    yield Case("uni/bert/cross-attn/lstm", pooling="pass", scorer="cross-attn", lstm=True)
    for pooling in ("last", "avg", "max", "rms", "abs_avg"):  # an LSTM drops the reference's padding
        yield Case(f"uni/bert/lstm/extract/{pooling}", pooling=pooling, lstm=True, extract=True)
    yield Case(
        "uni/deberta-v2/average/no-class-token",
        backbone="deberta-v2",
        class_pooling="average",
        extract=True,
        embed_class_token=False,
    )
    yield Case("uni/bert/normalize/mlp", normalize=True, scorer="mlp", options={"projector_hidden_act": "relu"})
    yield Case("uni/bert/hidden-size", options={"hidden_size": 20})


def _bi_encoders() -> Iterator[Case]:
    for i, pooling in enumerate(POOLINGS):
        for j, scorer in enumerate(SCORERS):
            backbone, labels = BACKBONES[(i + j) % 3], BACKBONES[(i + j + 1) % 3]
            for architecture in ("bi-encoder", "bi-encoder-fused"):
                yield Case(
                    f"{architecture}/{backbone}/{pooling}/{scorer}",
                    architecture=architecture,
                    backbone=backbone,
                    label_backbone=labels,
                    pooling=pooling,
                    scorer=scorer,
                    prompt_first=(i + j) % 2 == 0,
                )
    for architecture in ("bi-encoder", "bi-encoder-fused"):
        requests = NO_EXAMPLES if architecture == "bi-encoder" else tuple(REQUESTS)
        for prompt_first in (True, False):
            order = "labels-first" if prompt_first else "text-first"
            yield Case(
                f"{architecture}/normalize/{order}",
                architecture=architecture,
                backbone="deberta-v2",
                normalize=True,
                prompt_first=prompt_first,
                requests=requests,
            )


def _encoder_decoders() -> Iterator[Case]:
    kinds = ("t5", "mt5", "umt5")
    for i, pooling in enumerate(POOLINGS):
        for j, scorer in enumerate(SCORERS):
            yield Case(
                f"encoder-decoder/{kinds[(i + j) % 3]}/{pooling}/{scorer}",
                architecture="encoder-decoder",
                backbone=kinds[(i + j) % 3],
                pooling=pooling,
                scorer=scorer,
            )
    for kind in kinds:
        for scorer in SCORERS:
            yield Case(
                f"encoder-decoder-cls/{kind}/{scorer}",
                architecture="encoder-decoder-cls",
                backbone=kind,
                scorer=scorer,
            )
        for architecture in ("encoder-decoder", "encoder-decoder-cls"):
            yield Case(
                f"{architecture}/{kind}/normalize",
                architecture=architecture,
                backbone=kind,
                normalize=True,
                requests=tuple(REQUESTS),
            )
    yield Case("encoder-decoder/t5/lstm", architecture="encoder-decoder", backbone="t5", pooling="avg", lstm=True)


def _decoders() -> Iterator[Case]:
    for name, options in {
        "plain": {},
        "normalize": {"normalize_features": True},
        "full": {"scorer_full_sequence": True},
    }.items():
        yield Case(
            f"decoder-kv/{name}",
            architecture="decoder-kv",
            backbone="qwen3",
            scorer="decoder-kv",
            options=options,
            requests=tuple(REQUESTS),
        )


CASES: tuple[Case, ...] = (
    *_uni_encoders(),
    *_uni_encoder_switches(),
    *_bi_encoders(),
    *_encoder_decoders(),
    *_decoders(),
)


# --- the golden file --------------------------------------------------------------------------------------------------


def read_golden() -> dict[str, dict[str, list[float]]]:
    """Return the golden logits: case -> request -> one for each label."""
    golden: dict[str, dict[str, list[float]]] = json.loads(gzip.decompress(GOLDEN.read_bytes()))["logits"]
    return golden


def compute_golden(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Write every case's checkpoint into ``folder``, and return the reference's logits."""
    golden = {}
    for number, case in enumerate(CASES):
        path = folder / str(number)
        write_checkpoint(case, path)
        oracle = Oracle(path)
        golden[case.name] = {
            name: [float(f"{logit:.7g}") for logit in oracle.logits(REQUESTS[name])] for name in case.requests
        }
    return golden


def largest_difference(golden: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest difference of two sets of golden logits; infinity where they hold different cases."""
    worst = 0.0
    for case in golden.keys() | other.keys():
        requests, others = golden.get(case, {}), other.get(case, {})
        for name in requests.keys() | others.keys():
            a, b = np.array(requests.get(name, ())), np.array(others.get(name, ()))
            worst = max(worst, float(np.abs(a - b).max()) if a.shape == b.shape else math.inf)
    return worst


def main() -> int:
    """Write or check the golden file."""
    import importlib.metadata
    import tempfile

    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    write = parser.parse_args().write
    torch.set_num_threads(1)  # several only get into each other's way in models this small
    with tempfile.TemporaryDirectory() as folder:
        golden = compute_golden(Path(folder))
    if write:
        content = {"oracle": f"gliclass {importlib.metadata.version('gliclass')}", "logits": golden}
        text = json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
        GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
        sys.stdout.write(f"{GOLDEN}: {len(CASES)} cases, {GOLDEN.stat().st_size} bytes\n")
        return 0
    worst = largest_difference(read_golden(), golden)
    sys.stdout.write(f"{len(CASES)} cases, largest difference {worst:.2g}\n")
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

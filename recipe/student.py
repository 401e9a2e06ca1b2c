"""Make a student of fewer layers: every second layer of a trained teacher, taught to give the teacher's vectors.

    python recipe/student.py --teacher trained --data data --output student [--steps 3000] [--minutes 80]

The student starts as layers 2, 4, ... 12 of the teacher, or as `--start`. Each step draws texts by the weights of
`train.toml`: as they are, several joined to a long one, without punctuation, and labels in their wording. Its loss is
`1 - cosine` between the vectors of both, plus the squared difference of the cosines between the texts of a batch (what
a score is made of), plus the squared distance of the tokens' states behind each pair of layers (as TinyBERT, arXiv
1909.10351): what is right for a text has no part in it, so the student keeps whatever the teacher's space knows.
Embeddings stay as they are. `finish.py --start student --trained student` makes the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from finish import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from gliclass_cli.checkpoint import parse_checkpoint_config
from gliclass_cli.model import GliclassModel, build_model, save_model
from gliclass_cli.readers import ReadOptions
from gliclass_cli.training.rows import Source, read_sources
from gliclass_cli.training.run import Job, source_weights
from gliclass_cli.training.sampling import LabelInfo
from gliclass_cli.training.settings import make_settings, read_settings

SETTINGS: Final = Path(__file__).parent / "train.toml"
_MOST_TOKENS: Final = 192
_MOST_CHARACTERS: Final = 5 * _MOST_TOKENS
_MOST_TEXTS: Final = 128
_WARMUP: Final = 0.05
_VECTOR_WEIGHT: Final = 20.0  # of `1 - cosine`; the states have 1
_RELATION_WEIGHT: Final = 200.0  # of the mean squared difference of cosines


def main() -> None:
    """Teach, and save."""
    options = parse_options()
    if options.output.exists():
        raise SystemExit(f"{options.output}: exists; name a new folder")
    torch.manual_seed(options.seed)
    teacher = load(options.teacher).eval()
    student = (
        load(options.start) if options.start else halved(teacher)
    ).eval()  # trained without dropout, as the teacher was
    tokenizer = Tokenizer.from_file(str(Path(options.teacher) / "tokenizer.json"))
    tokenizer.enable_truncation(_MOST_TOKENS)
    tokenizer.enable_padding(pad_id=0)
    template = teacher.config.raw["inference"]["label_template"]
    files = [str(path) for path in sorted(options.data.glob("*.jsonl.gz"))]
    sources = read_sources(files, ReadOptions(), allow_empty=True)
    texts = draw_texts(sources, options.output, template, options.characters, options.seed)
    trained = [value for name, value in student.named_parameters() if ".layer." in name]
    for name, value in student.named_parameters():
        value.requires_grad_(".layer." in name)
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.01)
    began = time.monotonic()
    done = 0.0
    for step in range(options.steps):
        done = max(step / options.steps, (time.monotonic() - began) / (60 * options.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, done / _WARMUP + 0.01) * (1 + math.cos(math.pi * done)) / 2
        inputs = encode(tokenizer, next(texts))
        loss, cosine = compare(teacher, student, inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 20 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:.1f} min, step {step}: loss {float(loss.detach()):.4f}, cosine {cosine:.4f}", flush=True)
    save_model(student, options.output)
    (options.output / "tokenizer.json").write_bytes((Path(options.teacher) / "tokenizer.json").read_bytes())


def halved(teacher: GliclassModel) -> GliclassModel:
    """Return a model of every second layer of a teacher, the last one among them."""
    raw = json.loads(json.dumps(teacher.config.raw))
    layers = raw["encoder_config"]["num_hidden_layers"] // 2
    for part in {"encoder_config", "label_model_config"} & raw.keys():
        raw[part]["num_hidden_layers"] = layers
    student = build_model(parse_checkpoint_config(raw, "config.json"))
    values = teacher.state_dict()
    student.load_state_dict({name: values[twice(name)] for name in student.state_dict()})
    return student


def twice(name: str) -> str:
    """Return the name in the teacher of a weight of the student."""
    before, layer, after = name.partition(".layer.")
    if not layer:
        return name
    number, _, rest = after.partition(".")
    return f"{before}.layer.{2 * int(number) + 1}.{rest}"


def draw_texts(sources: Sequence[Source], output: Path, template: str, size: int, seed: int) -> Iterator[list[str]]:
    """Yield batches without end, each of similar length: texts, joined texts and labels of the same sources."""
    settings = make_settings(read_settings(SETTINGS.read_text("utf-8"), str(SETTINGS)))
    shares = source_weights(Job("", sources, output, settings, info=LabelInfo()))
    weights = [share * len(source.rows) for share, source in zip(shares, sources, strict=True)]
    draw = random.Random(seed)
    while True:
        drawn: list[str] = []
        for source in draw.choices(sources, weights, k=1024):
            row, kind = draw.choice(source.rows), draw.random()
            if kind < 0.25:
                drawn.append(template.replace("{label}", draw.choice(row.candidates or source.pool)))
            elif kind < 0.45:
                drawn.append(" ".join(each.text for each in draw.choices(source.rows, k=draw.randint(2, 10))))
            else:
                drawn.append(row.text)
            if draw.random() < 0.1:
                drawn[-1] = re.sub(r"[^\w\s]+", "", drawn[-1])
        drawn.sort(key=len)
        batches: list[list[str]] = [[]]
        for text in drawn:
            held, length = len(batches[-1]), min(len(text), _MOST_CHARACTERS)
            if held >= _MOST_TEXTS or (held > 1 and (held + 1) * length > size):
                batches.append([])
            batches[-1].append(text)
        draw.shuffle(batches)
        yield from batches


def encode(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return token ids and mask (B, L)."""
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": torch.tensor([item.ids for item in found]),
        "attention_mask": torch.tensor([item.attention_mask for item in found]),
    }


def compare(teacher: GliclassModel, student: GliclassModel, inputs: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Return the loss of a batch, and the mean cosine between both models' vectors: their first tokens' states."""
    with torch.no_grad():
        wanted = teacher.encoder_model(**inputs, output_hidden_states=True).hidden_states[2::2]
    found = student.encoder_model(**inputs, output_hidden_states=True).hidden_states[1:]
    mask = inputs["attention_mask"][..., None].float()
    # LayerNorm ends a layer; its gain differs by layer, so distances are told in units of the teacher's own size.
    states = sum(
        ((ours - theirs).square() * mask).sum() / (theirs.square() * mask).sum()
        for ours, theirs in zip(found, wanted, strict=True)
    ) / len(found)
    ours, theirs = (functional.normalize(layers[-1][:, 0], dim=-1) for layers in (found, wanted))
    cosine = (ours * theirs).sum(-1).mean()
    relations = (ours @ ours.T - theirs @ theirs.T).square().mean()
    return states + _VECTOR_WEIGHT * (1 - cosine) + _RELATION_WEIGHT * relations, float(cosine.detach())


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, metavar="FOLDER")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--start", metavar="FOLDER", help="a student to go on with")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=600, help="end earlier, the learning rate lowered in time")
    parser.add_argument("--characters", type=int, default=6_000, help="of a step, filled up ones too")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()

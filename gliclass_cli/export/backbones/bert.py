"""BERT (arXiv 1810.04805) as transformers' ``BertModel`` computes it, without its pooler."""

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part
from gliclass_cli.export.builder import Builder


def words(builder: Builder, part: Part, ids: str) -> str:
    """Return word embeddings (B, L, D)."""
    return builder.embed(ids, part["embeddings.word_embeddings.weight"])


def encode(builder: Builder, part: Part, inputs: Inputs, *, layers: int | None = None) -> list[str]:
    """Return the states (B, L, D): the embeddings, and those after each layer.

    Raises:
        ModelUnusable: positions are not absolute, or attention is that of a decoder.
    """
    config = part.config
    if config.get("is_decoder"):
        raise ModelUnusable("BERT as a decoder cannot be exported; --backend torch runs the checkpoint")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelUnusable("BERT with relative positions cannot be exported; --backend torch runs the checkpoint")
    length, hidden = builder.shape_of(inputs.words, 1), int(config["hidden_size"])
    # All tokens are of type 0: its row goes into the positions.
    positions = part["embeddings.position_embeddings.weight"] + part["embeddings.token_type_embeddings.weight"][0]
    embedded = builder.add(
        "Add", inputs.words, builder.slice(builder.constant(positions, f"{part.prefix}positions"), 0, length, 0)
    )
    tokens = builder.reshape(embedded, -1, hidden)
    tokens = part.layer_norm(builder, tokens, "embeddings.LayerNorm", float(config["layer_norm_eps"]))
    rows = builder.shape(builder.shape_of(inputs.words, 0), length, hidden)
    mask = pair_mask(builder, inputs.mask)
    states = [builder.add("Reshape", tokens, rows)]
    count = int(config["num_hidden_layers"]) if layers is None else layers
    for number in range(count):
        tokens = _layer(builder, part, f"encoder.layer.{number}", tokens, rows, mask)
        states.append(builder.add("Reshape", tokens, rows))
    return states


def pair_mask(builder: Builder, mask: str) -> str:
    """Return a mask (B, L) as attention takes it: bool (B, 1, L, L), which key each query sees."""
    length = builder.shape_of(mask, 1)
    keys = builder.unsqueeze(builder.cast(mask, "bool"), 1, 2)
    return builder.add("Expand", keys, builder.shape(builder.shape_of(mask, 0), 1, length, length))


def _layer(builder: Builder, part: Part, name: str, tokens: str, rows: str, mask: str) -> str:
    """Add one layer to flat tokens (N, D)."""
    config = part.config
    heads, epsilon = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
    inputs = [
        builder.add("Reshape", part.linear(builder, tokens, f"{name}.attention.self.{role}"), rows)
        for role in ("query", "key", "value")
    ]
    attended = builder.add("Attention", *inputs, mask, q_num_heads=heads, kv_num_heads=heads)
    attended = builder.reshape(attended, -1, int(config["hidden_size"]))
    attended = part.linear(builder, attended, f"{name}.attention.output.dense")
    middle = part.layer_norm(
        builder, builder.add("Add", attended, tokens), f"{name}.attention.output.LayerNorm", epsilon
    )
    inner = builder.activation(str(config["hidden_act"]), part.linear(builder, middle, f"{name}.intermediate.dense"))
    output = part.linear(builder, inner, f"{name}.output.dense")
    return part.layer_norm(builder, builder.add("Add", output, middle), f"{name}.output.LayerNorm", epsilon)

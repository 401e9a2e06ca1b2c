"""BERT (arXiv 1810.04805) as transformers' ``BertModel`` computes it, without its pooler."""

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, pick_tokens, picked_shape
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
    total = int(config["num_hidden_layers"])
    for number in range(total if layers is None else layers):
        name, needed = f"encoder.layer.{number}", inputs.needed if number == total - 1 else None
        if needed is None:
            tokens = _layer(builder, part, name, tokens, tokens, rows, rows, mask)
            states.append(builder.add("Reshape", tokens, rows))
        else:
            asking, asked = pick_tokens(builder, tokens, rows, needed, hidden), picked_shape(builder, needed, hidden)
            seen = pair_mask(builder, inputs.mask, builder.shape_of(needed, 1))
            last = _layer(builder, part, name, asking, tokens, asked, rows, seen)
            states.append(builder.add("Reshape", last, asked))
    return states


def pair_mask(builder: Builder, mask: str, queries: str | None = None) -> str:
    """Return a mask (B, L) as attention takes it: bool (B, 1, K, L), which key each of K queries (or of all L) sees."""
    length = builder.shape_of(mask, 1)
    keys = builder.unsqueeze(builder.cast(mask, "bool"), 1, 2)
    return builder.add("Expand", keys, builder.shape(builder.shape_of(mask, 0), 1, queries or length, length))


def _layer(builder: Builder, part: Part, name: str, asking: str, tokens: str, asked: str, rows: str, mask: str) -> str:
    """Add one layer to the flat tokens that ask (M, D) of all flat tokens (N, D); ``asked``, ``rows``: (B, ., D)."""
    config = part.config
    heads, epsilon = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
    inputs = [
        builder.add("Reshape", part.linear(builder, source, f"{name}.attention.self.{role}"), shape)
        for role, source, shape in (("query", asking, asked), ("key", tokens, rows), ("value", tokens, rows))
    ]
    attended = builder.add("Attention", *inputs, mask, q_num_heads=heads, kv_num_heads=heads)
    attended = builder.reshape(attended, -1, int(config["hidden_size"]))
    attended = part.linear(builder, attended, f"{name}.attention.output.dense")
    middle = part.layer_norm(
        builder, builder.add("Add", attended, asking), f"{name}.attention.output.LayerNorm", epsilon
    )
    inner = builder.activation(str(config["hidden_act"]), part.linear(builder, middle, f"{name}.intermediate.dense"))
    output = part.linear(builder, inner, f"{name}.output.dense")
    return part.layer_norm(builder, builder.add("Add", output, middle), f"{name}.output.LayerNorm", epsilon)

"""What the model reads: how a text and a label are worded before they are tokenised."""

LABEL_SLOT = "{label}"


def word_label(template: str, name: str, description: str | None) -> str:
    """Put a label, and its description if it has one, into the model's label template.

    The template is never a format string: braces and percent signs in a label stay what they are.
    """
    label = f"{name}: {description}" if description else name
    return template.replace(LABEL_SLOT, label)

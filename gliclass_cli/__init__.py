"""Zero-shot text classification from a terminal, with GLiClass models.

``Classifier`` is the one class that a Python user imports:

    from gliclass_cli import Classifier
    Classifier.load().predict(["I was charged twice"], ["billing", "shipping"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gliclass_cli.classifier import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    """Import ``Classifier`` on first use: `gliclass --help` needs neither numpy nor onnxruntime."""
    if name == "Classifier":
        from gliclass_cli.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

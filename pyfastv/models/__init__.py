"""Model files: the bundled ones, Hugging Face's, names for them, their headers, their vision encoders in another type."""

from .bundled import Example, bundled_examples, bundled_mmproj, bundled_model
from .hub import from_hub, mmproj_beside

__all__ = ["Example", "bundled_examples", "bundled_mmproj", "bundled_model", "from_hub", "mmproj_beside"]

"""The pictures that come with the package, as paths of files: what the bundled model can be asked about.

>>> from pyfastv import Runner, examples
>>> with Runner() as runner:
...     print(runner.ask(examples.clock, "Read the clock."))
"""

from __future__ import annotations

from .models.bundled import bundled_picture

__all__ = ["chart", "clock", "dice", "scene"]

chart = bundled_picture("chart.png")
clock = bundled_picture("clock.png")
dice = bundled_picture("dice.png")
scene = bundled_picture("scene.png")

"""equipoise: entropy control for reinforcement fine-tuning of language models, token by token.

This package is the mathematics: pure functions and one small controller, on torch alone. The trainer lives in
`equipoise.trl`, which is not imported here. Names are loaded when they are first used: `__init__.pyi` lists them with
their homes, so that `equipoise --help` loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

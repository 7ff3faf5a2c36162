r"""Whether a mathematical answer is the expected one.

An answer is brought into one spelling (`notation`), taken apart into what it is (`forms`), and compared by what it says
(`equality`); expressions are parsed by math-verify's LaTeX parser and compared exactly or relatively (`expressions`).
Nothing here imports the rest of equipoise, and sympy is imported at the first expression: the process that judges what
a model wrote loads this package alone.
"""

from .completion import marked_answer, tagged_answer
from .perturbation import perturbed
from .verdicts import parsed_gold, verdict, warm

__all__ = ["marked_answer", "parsed_gold", "perturbed", "tagged_answer", "verdict", "warm"]

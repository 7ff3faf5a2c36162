"""A pytest plug-in that makes the shape annotations of equipoise executable before any of its modules is imported."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is welcome where a float is annotated, as PEP 484 has it.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

install_import_hook("equipoise", "equipoise_jaxtyping.typechecker")

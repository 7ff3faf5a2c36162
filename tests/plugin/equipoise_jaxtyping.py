"""A pytest plug-in that makes the shape annotations of equipoise executable before any of its modules is imported."""

from jaxtyping import install_import_hook

install_import_hook("equipoise", "beartype.beartype")

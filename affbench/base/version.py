"""The version of affbench, which every artefact carries."""

__version__ = "0.1.0"

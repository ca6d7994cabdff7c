"""The version, where every module can read it while the package is still being imported."""

__version__ = "0.1.0"

"""jaxscale: plan, train and export large models in JAX."""

__version__ = "0.1.0"

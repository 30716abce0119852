"""How adversarial directions transfer between neural networks.

The package imports nothing by itself: `from jtrans import metrics` costs no more than JAX does.
"""

__version__ = "0.2.0"

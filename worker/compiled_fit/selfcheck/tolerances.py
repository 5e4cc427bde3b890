"""What compiled fits may differ by from Keras' own: nothing in ``exact``, rounding in XLA."""

from __future__ import annotations

#: What XLA may differ by, relative to the value where that is more than one.
XLA_TOLERANCE = 2e-6
#: The same for Ftrl, whose variables named "linear" add up terms divided by the learning rate of 0.001, and so what
#: their rounding leaves (1.5e-5 at most was seen, in no other variable), and for weights of 16 bits.
XLA_TOLERANCE_OF_FTRL, XLA_TOLERANCE_OF_FLOAT16 = 2e-5, 1e-3
#: The same after a BatchNormalization. The bias before it has no gradient but rounding noise, which optimizers that
#: divide by a gradient's size make steps of; Lion's are whole ones, of its learning rate of 0.001.
XLA_TOLERANCE_OF_NOISE = {"adam": 3e-4, "adamw": 3e-4, "nadam": 3e-3, "ftrl": 3e-4, "lion": 3e-2}

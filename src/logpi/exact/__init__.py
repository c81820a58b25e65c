"""The oracle: a policy so small that every outcome can be counted, and what each algorithm's gradient averages to."""

from logpi.exact import baselines
from logpi.exact.bias import Measured, measure, prove, verdict
from logpi.exact.tabular import REWARDS, TabularPolicy

__all__ = ["REWARDS", "Measured", "TabularPolicy", "baselines", "measure", "prove", "verdict"]

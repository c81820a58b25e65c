"""Where the policy acts."""

from logpi.environments.gym import GymEnvironment

__all__ = ["GymEnvironment"]

"""What a network costs and what its BatchNorm sets hold; nothing here trains."""
from .cost import ParameterCounts, activations, madds, parameter_counts

__all__ = ['ParameterCounts', 'activations', 'madds', 'parameter_counts']

"""A network over HTTP: requests with deadlines, at the size that keeps them. Needs `rs_timm[serve]`, no torch."""
from .app import create_app
from .queue import Answer, Refused, RequestQueue, measure_costs
from .replicas import deployment

__all__ = ['Answer', 'Refused', 'RequestQueue', 'create_app', 'deployment', 'measure_costs']

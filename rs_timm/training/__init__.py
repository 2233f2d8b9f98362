"""Train and evaluate RS-Nets: the task, the loop, checkpoints and recipes."""
from rs_timm.evaluation import (
    confusion_matrices,
    evaluate,
    evaluate_masks,
    masks_table,
    results_rows,
    results_table,
    write_results_csv,
)

from .cpu.memory import keep_freed_memory
from .loop import NonFiniteError, Trainer
from .processes import Stopped
from .recipe import Recipe
from .recipes import RECIPES, get_recipe
from .task import MREDTask
from .train import Options, Trained, train

__all__ = [
    'MREDTask',
    'NonFiniteError',
    'Options',
    'RECIPES',
    'Recipe',
    'Stopped',
    'Trained',
    'Trainer',
    'confusion_matrices',
    'evaluate',
    'evaluate_masks',
    'get_recipe',
    'keep_freed_memory',
    'masks_table',
    'results_rows',
    'results_table',
    'train',
    'write_results_csv',
]

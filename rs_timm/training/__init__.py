"""Train and evaluate RS-Nets: the task, the loop, checkpoints and recipes."""
from .cpu.memory import keep_freed_memory
from .evaluate import evaluate, results_rows, results_table, write_results_csv
from .evaluate_masks import confusion_matrices, evaluate_masks, masks_table
from .loop import NonFiniteError, Trainer
from .recipe import Recipe
from .recipes import RECIPES, get_recipe
from .signals import Stopped
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

"""Collections of pictures, predicted into rows of a file."""

"""An exported file without torch: what it says about itself, and the plain network that it is at each resolution."""

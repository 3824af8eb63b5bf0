"""Fast paths of what `affbench.models` states plainly."""

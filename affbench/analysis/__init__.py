"""What trained models do beyond one accuracy, in numbers only: `affbench.report` draws them."""

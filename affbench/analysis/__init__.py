"""What trained models do beyond one accuracy: what capsules hold, where models fail, and what a sweep says.

Numbers only; `affbench.report` draws them.
"""
